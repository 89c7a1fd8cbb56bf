"""Claims about tools/kernel_costs.py: loops of machine code, their trips, resident warps, what the check finds."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import cost_table
import gpu_model
import loop_matching
import loop_trips
import machine_code
import pytest
import torch
from support.scripts import ROOT

# --- machine code -----------------------------------------------------------------------------------------------------


def listing(*lines: str) -> str:
    """Instructions at 0x0000, 0x0010, ... as cuobjdump prints them."""
    return "\n".join(f"        /*{16 * at:04x}*/   {line} ;   /* 0x0 */" for at, line in enumerate(lines))


NESTED = listing(
    "MOV R1, c[0x0][0x28]",  # 0x00
    "@P0 EXIT",  # 0x10
    "LDG.E R2, desc[UR4][R2.64]",  # 0x20, once a candidate
    "FFMA R4, R5, R6, R7",  # 0x30, once a tile
    "STL [R1], R4",  # 0x40
    "@!P4 BRA 0x30",  # 0x50
    "SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR4], R3",  # 0x60, a wait
    "@!P1 BRA 0x60",  # 0x70
    "LDL R4, [R1]",  # 0x80
    "BRA.U UP0, 0x20",  # 0x90, the condition is an operand
    "EXIT",  # 0xa0
    "BRA 0xb0",  # 0xb0, never reached
)


def test_loops_are_found_by_their_jumps_back_and_nest():
    code = machine_code.parsed("kernel", NESTED)
    (candidates,) = code.loops
    tiles, wait = candidates.inner
    assert candidates.header.address == 0x20 and tiles.header.address == 0x30
    assert wait.waits and not tiles.waits and not candidates.waits
    assert machine_code.kinds_of(tiles.own) == {"float": 1, "local": 1, "branch": 1}
    # What waits for a barrier counts once, as what is around it.
    assert machine_code.kinds_of(candidates.own) == {"global": 1, "barrier": 1, "local": 1, "branch": 2}
    depths = {block.address: code.depth(block) for block in code.blocks}
    assert (depths[0x0], depths[0x20], depths[0x30], depths[0x60], depths[0xA0]) == (0, 1, 2, 1, 0)
    assert machine_code.spills(code) == (2, 1)


def test_what_no_ordinary_way_reaches_is_rare():
    code = machine_code.parsed("kernel", NESTED)
    assert [block.address for block in code.blocks if block.rare] == [0xB0]
    diverged = listing("BRA.DIV UR4, 0x30", "FADD R1, R1, R2", "EXIT", "WARPSYNC.COLLECTIVE R1, 0x40", "BRA 0x10")
    code = machine_code.parsed("kernel", diverged)
    assert [block.address for block in code.blocks if block.rare] == [0x30] and not code.loops


def test_a_call_returns_unless_nothing_behind_it_does():
    slow = listing("NOP", "@P0 CALL.REL.NOINC 0x50", "FADD R1, R1, R2", "@P1 BRA 0x10", "EXIT", "NOP", "RET.REL R2 0x0")
    code = machine_code.parsed("kernel", slow)
    assert [block.address for block in code.blocks if block.rare] == [0x50] and len(code.loops) == 1
    # A far jump out of an inner loop to the end of the outer one.
    jump = listing("NOP", "NOP", "NOP", "@P0 CALL.REL.NOINC 0x50", "BRA 0x20", "@P1 EXIT", "BRA 0x10")
    (outer,) = machine_code.parsed("kernel", jump).loops
    assert outer.header.address == 0x10 and [loop.header.address for loop in outer.inner] == [0x20]
    assert not any(block.rare for block in outer.blocks)


def test_a_loop_with_two_jumps_back_is_one():
    code = machine_code.parsed("kernel", listing("NOP", "@P0 BRA 0x10", "FADD R1, R1, R2", "@P1 BRA 0x10", "EXIT"))
    (loop,) = code.loops
    assert not loop.inner and sum(machine_code.kinds_of(loop.blocks).values()) == 3


def test_a_table_of_jumps_leads_to_what_nothing_else_leads_to():
    listed = listing(
        "LDC R6, c[0x2][R8]",  # 0x00
        "BRX R6 -0x20",  # 0x10
        "FADD R1, R1, R2",  # 0x20, a case that begins with a loop
        "@P0 BRA 0x20",  # 0x30
        "EXIT",  # 0x40
        "@P1 CALL.REL.NOINC 0x90",  # 0x50, another one
        "FADD R1, R1, R2",  # 0x60
        "@P0 BRA 0x60",  # 0x70
        "EXIT",  # 0x80
        "FMUL R1, R1, R2",  # 0x90, a slow path
        "RET.REL R2 0x0",  # 0xa0
        "BRA 0xb0",  # 0xb0, what follows a kernel
        "NOP",  # 0xc0
    )
    code = machine_code.parsed("kernel", listed)
    assert [loop.header.address for loop in code.loops] == [0x20, 0x60]
    assert [block.address for block in code.blocks if block.rare] == [0x90, 0xB0, 0xC0]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("HGMMA.64x64x16.F32.BF16", "tensor"),
        ("HMMA.16816.F32.BF16", "tensor"),
        ("UTCHMMA", "tensor"),
        ("MUFU.TANH", "special"),
        ("LDL.LU", "local"),
        ("LDSM.16.M88.4", "shared"),
        ("LDG.E.128", "global"),
        ("LDGSTS.E.BYPASS.128", "global"),
        ("LDGDEPBAR", "barrier"),
        ("UTMALDG.2D", "global"),
        ("SHFL.BFLY", "shuffle"),
        ("BAR.SYNC.DEFER_BLOCKING", "barrier"),
        ("BRA", "branch"),
        ("F2FP.BF16.F32.PACK_AB", "conversion"),
        ("IMAD.U32", "conversion"),
        ("IMAD.MOV.U32", "integer"),
        ("FSETP.GEU.AND", "float"),
        ("FFMA", "float"),
        ("HFMA2.BF16_V2", "float"),
        ("ISETP.GE.AND", "integer"),
        ("DEPBAR.LE", "barrier"),
    ],
)
def test_instructions_are_told_apart_by_name(name, kind):
    assert machine_code.Instruction(0, "", name, "").kind == kind


def test_bytes_of_shared_memory_are_those_of_a_warp():
    def moved(name):
        return machine_code.Instruction(0, "", name, "R0, [R1]").shared_bytes

    assert [moved(name) for name in ("LDS", "LDS.64", "STS.128")] == [128, 256, 512]
    assert moved("LDSM.16.M88.4") == 512 and moved("LDSM.16.MT88") == 128 and moved("LDG.E.128") == 0


def test_a_listing_without_instructions_is_refused():
    with pytest.raises(ValueError, match="must hold instructions"):
        machine_code.parsed("kernel", "nothing")


# --- trips ------------------------------------------------------------------------------------------------------------

# A persistent kernel over candidates, in tiles of 64 behaviours, the longest of two candidates a group.
IR = """
#loc = loc("kernel.py":1:1)
module {
  tt.func public @kernel(%rows: !tt.ptr<bf16> {tt.divisibility = 16 : i32} loc("rows"(#loc)), %length: !tt.ptr<i64>, \
%queries: i32) attributes {noinline = false} {
    %c0 = arith.constant 0 : i32 loc(#loc)
    %c1 = arith.constant 1 : i32 loc(#loc)
    %c2 = arith.constant 2 : i32 loc(#loc)
    %c64 = arith.constant 64 : i32 loc(#loc)
    %none = arith.constant dense<0> : tensor<2xi64> loc(#loc)
    %zero = arith.constant dense<0.000000e+00> : tensor<64x128xf32> loc(#loc)
    %pair = tt.make_range {end = 2 : i32, start = 0 : i32} : tensor<2xi32> loc(#loc)
    %0 = tt.get_program_id x : i32 loc(#loc)
    %1 = tt.get_num_programs x : i32 loc(#loc)
    %2 = arith.addi %queries, %c1 : i32 loc(#loc)
    %3 = arith.divsi %2, %c2 : i32 loc(#loc)
    %last = tt.splat %queries : i32 -> tensor<2xi32> loc(#loc)
    scf.for %work = %0 to %3 step %1  : i32 {
      %first = arith.muli %work, %c2 : i32 loc(#loc)
      %4 = tt.splat %first : i32 -> tensor<2xi32> loc(#loc)
      %candidate = arith.addi %4, %pair : tensor<2xi32> loc(#loc)
      %present = arith.cmpi slt, %candidate, %last : tensor<2xi32> loc(#loc)
      %5 = tt.splat %length : !tt.ptr<i64> -> tensor<2x!tt.ptr<i64>> loc(#loc)
      %6 = tt.addptr %5, %candidate : tensor<2x!tt.ptr<i64>>, tensor<2xi32> loc(#loc)
      %7 = tt.load %6, %present, %none : tensor<2x!tt.ptr<i64>> loc(#loc)
      %count = arith.trunci %7 : tensor<2xi64> to tensor<2xi32> loc(#loc)
      %longest = "tt.reduce"(%count) <{axis = 0 : i32}> ({
      ^bb0(%a: i32 loc(callsite(#loc at #loc)), %b: i32 loc(callsite(#loc at #loc))):
        %8 = arith.maxsi %a, %b : i32 loc(#loc)
        tt.reduce.return %8 : i32 loc(#loc)
      }) : (tensor<2xi32>) -> i32 loc(#loc)
      %sum:2 = scf.for %t = %c0 to %longest step %c64 iter_args(%total = %zero, %seen = %c0) -> \
(tensor<64x128xf32>, i32)  : i32 {
        %9 = tt.splat %rows : !tt.ptr<bf16> -> tensor<64x128x!tt.ptr<bf16>> loc(#loc)
        %k = tt.load %9 : tensor<64x128x!tt.ptr<bf16>> loc(#loc)
        %10 = arith.extf %k : tensor<64x128xbf16> to tensor<64x128xf32> loc(#loc)
        %11 = arith.addf %total, %10 : tensor<64x128xf32> loc(#loc)
        %12 = arith.addi %seen, %c1 : i32 loc(#loc)
        scf.yield %11, %12 : tensor<64x128xf32>, i32 loc(#loc)
      } loc(#loc)
      scf.for %again = %c0 to %sum#1 step %c1  : i32 {
        %13 = arith.addi %again, %c1 : i32 loc(#loc)
      } loc(#loc)
    } loc(#loc)
    tt.return loc(#loc)
  } loc(#loc)
} loc(#loc)
"""
LENGTHS = (0, 1, 64, 65, 200, 0, 0, 128, 7)


def arguments(queries: int = len(LENGTHS)) -> dict[str, object]:
    return {"rows": torch.empty(4, 128, dtype=torch.bfloat16), "length": torch.tensor(LENGTHS), "queries": queries}


@pytest.mark.parametrize("programs", [1, 2, 3, 7])
def test_trips_are_those_of_the_loops_written_in_python(programs):
    found = loop_trips.trips(IR, (programs,), arguments())
    groups = [max(LENGTHS[at : at + 2]) for at in range(0, len(LENGTHS), 2)]
    (outer,) = found.loops
    tiles, again = outer.inner
    assert outer.trips.tolist() == [len(groups[at::programs]) for at in range(programs)]
    expected = [sum(-(-longest // 64) for longest in groups[at::programs]) for at in range(programs)]
    # The second loop's bound is carried through the first.
    assert tiles.trips.tolist() == expected and again.trips.tolist() == expected
    assert found.requested == {"rows": sum(expected) * 64 * 128 * 2, "length": len(groups) * 16}


def test_many_programs_are_sampled(monkeypatch):
    monkeypatch.setattr(loop_trips, "PROGRAMS", 2)
    found = loop_trips.trips(IR, (4,), arguments())
    assert (found.programs, found.evaluated) == (4, 2) and len(found.loops[0].trips) == 2
    # 2 of 4 programs stand for all: groups 0, 4 and 2.
    assert found.loops[0].inner[0].trips.tolist() == [2, 4] and found.requested["rows"] == 2 * 6 * 64 * 128 * 2


WHILE = """
  tt.func public @kernel(%n: i32) {
    %c3 = arith.constant 3 : i32
    %c0 = arith.constant 0 : i32
    %0 = arith.cmpi sgt, %n, %c0 : i32
    scf.if %0 {
      %1 = scf.while (%x = %n) : (i32) -> i32 {
        %2 = arith.cmpi sgt, %x, %c3 : i32
        scf.condition(%2) %x : i32
      } do {
      ^bb0(%y: i32):
        %3 = arith.subi %y, %c3 : i32
        scf.yield %3 : i32
      }
    } else {
    }
    tt.return
  }
"""


@pytest.mark.parametrize(("n", "expected"), [(-1, 0), (3, 0), (4, 1), (10, 3)])
def test_loops_with_a_condition_and_branches_are_followed(n, expected):
    assert [loop.trips.tolist() for loop in loop_trips.trips(WHILE, (1,), {"n": n}).loops] == [[expected]]


REUSED = """
  tt.func public @kernel(%n: i32) {
    %c0 = arith.constant 0 : i32
    %c1 = arith.constant 1 : i32
    scf.for %i = %c0 to %n step %c1  : i32 {
      %0 = tt.mystery %i : i32
      %1:2 = tt.mystery %0 : i32, i32
    }
    scf.for %i = %c0 to %c1 step %c1  : i32 {
      %0 = arith.addi %n, %c1 : i32
      %1:2 = scf.for %t = %c0 to %0 step %c1 iter_args(%2 = %c1, %3 = %0) -> (i32, i32)  : i32 {
        %4 = arith.addi %2, %c1 : i32
        scf.yield %4, %3 : i32, i32
      }
      scf.for %t = %c0 to %1#0 step %c1  : i32 {
        %2 = tt.mystery %t : i32
      }
    }
    tt.return
  }
"""


def test_a_name_that_is_given_again_is_another_value():
    first, second = loop_trips.trips(REUSED, (1,), {"n": 5}).loops
    assert first.trips.tolist() == [5] and second.trips.tolist() == [1]
    assert [loop.trips.tolist() for loop in second.inner] == [[6], [7]]


TICKET = """
  tt.func public @kernel(%count: !tt.ptr<i64>, %n: i32) {
    %c0 = arith.constant 0 : i32
    %c1 = arith.constant 1 : i32
    %one = arith.constant 1 : i64
    %true = arith.constant true
    %0 = tt.get_num_programs x : i32
    %1 = tt.get_num_programs y : i32
    %2 = arith.muli %0, %1 : i32
    %3 = arith.subi %2, %c1 : i32
    %last = arith.extsi %3 : i32 to i64
    %before = tt.atomic_rmw add, acq_rel, gpu, %count, %one, %true : (!tt.ptr<i64>, i64, i1) -> i64
    %4 = arith.cmpi eq, %before, %last : i64
    scf.if %4 {
      scf.for %t = %c0 to %n step %c1  : i32 {
        %5 = tt.mystery %t : i32
      }
    }
    tt.return
  }
"""


def test_the_program_with_the_last_ticket_runs_a_loop_alone():
    call = {"count": torch.zeros((), dtype=torch.int64), "n": 7}
    assert [loop.trips.tolist() for loop in loop_trips.trips(TICKET, (2, 3), call).loops] == [[0, 0, 0, 0, 0, 7]]
    with pytest.raises(ValueError, match=r"depends on tt\.atomic_rmw"):
        loop_trips.trips(TICKET.replace("atomic_rmw add", "atomic_rmw xchg"), (2, 3), call)
    # A ticket in a loop.
    before, drawn = TICKET.split("%before")[0], "%before" + TICKET.split("%before", 1)[1].split("tt.return")[0]
    looped = f"{before}scf.for %i = %c0 to %n step %c1  : i32 {{\n{drawn}}}\n    tt.return\n  }}"
    with pytest.raises(ValueError, match=r"depends on tt\.atomic_rmw"):
        loop_trips.trips(looped, (2, 3), call)


def test_a_bound_that_cannot_be_evaluated_is_named():
    unknown = WHILE.replace("arith.subi %y, %c3", "tt.mystery %y, %c3")
    with pytest.raises(ValueError, match=r"depends on tt\.mystery"):
        loop_trips.trips(unknown, (1,), {"n": 9})
    with pytest.raises(ValueError, match=r"arguments must be those of the kernel"):
        loop_trips.trips(WHILE, (1,), {"n": 9, "m": 1})


def test_an_early_return_leaves_the_loops_behind_it():
    early = WHILE.replace("scf.if %0", "cf.cond_br %0, ^bb1, ^bb2\n    ^bb1:\n    tt.return\n    ^bb2:\n    scf.if %0")
    assert [loop.trips.tolist() for loop in loop_trips.trips(early, (1,), {"n": 10}).loops] == [[3]]


def test_an_address_that_no_argument_explains_is_refused():
    with pytest.raises(ValueError, match="is read at .* of 3 entries"):
        loop_trips.trips(IR, (1,), arguments() | {"length": torch.tensor(LENGTHS[:3])})


def test_products_are_counted_by_their_loops():
    line = "%d = tt.dot %a, %b, %c : tensor<64x32xbf16, #x> * tensor<32x16xbf16, #y> -> tensor<64x16xf32, #z>"
    found = loop_trips.trips(WHILE.replace("%3 = arith.subi", f"{line}\n        %3 = arith.subi"), (1,), {"n": 10})
    assert found.products == {"bf16": 3 * 2 * 64 * 32 * 16}


# --- loops of both ----------------------------------------------------------------------------------------------------


def test_loops_are_matched_by_nesting_and_order():
    code = machine_code.parsed("kernel", NESTED)
    source = loop_trips.trips(
        IR.replace("scf.for %again = %c0 to %sum#1", "scf.for %again = %c0 to %c0"), (1,), arguments()
    )
    # A second inner loop that never runs is one that the compiler dropped.
    (outer, outer_trips, one), (inner, inner_trips, two) = loop_matching.matched(code.loops, source.loops)
    assert (outer.header.address, one, inner.header.address, two) == (0x20, 1, 0x30, 2)
    assert outer_trips.tolist() == [5] and inner_trips.tolist() == [10]
    assert loop_matching.matched(code.loops, source.loops[0].inner) is None


def test_an_unrolled_loop_takes_several_steps_at_once():
    code = machine_code.parsed(
        "kernel",
        listing("LDG R1, [R2]", *["LDG R1, [R2]"] * 4, "@P0 BRA 0x10", "LDG R1, [R2]", "@P0 BRA 0x60", "EXIT"),
    )
    source = loop_trips.trips(WHILE, (1,), {"n": 34}).loops
    assert source[0].trips.tolist() == [11]
    assert [trips.tolist() for _, trips, _ in loop_matching.matched(code.loops, source)] == [[2], [3]]


# --- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chip", "registers", "shared", "warps", "blocks"),
    [
        ("sm_90", 255, 0, 8, 1),  # 8 warps of 8,192 registers are all there are
        ("sm_90", 244, 44_800, 4, 2),  # 7,936 a warp: 2 in each quarter
        ("sm_90", 128, 44_800, 4, 4),
        ("sm_90", 168, 0, 4, 3),
        ("sm_90", 144, 0, 2, 6),  # 14 warps would fit all registers, 3 do in each quarter
        ("sm_90", 32, 0, 1, 32),  # blocks
        ("sm_90", 32, 0, 4, 16),  # warps
        ("sm_89", 32, 0, 4, 12),
        ("sm_90", 32, 113 * 1024, 4, 2),  # 1 KB of each block is the system's
        ("sm_90", 32, 114 * 1024, 4, 1),
        ("sm_80", 32, 80 * 1024, 8, 2),
        ("sm_100", 64, 227 * 1024, 4, 1),
    ],
)
def test_resident_blocks_follow_from_the_scarcest_resource(chip, registers, shared, warps, blocks):
    assert gpu_model.resident_blocks(gpu_model.CHIPS[chip], registers, shared, warps) == blocks


def work(**changes) -> object:
    base = dict(
        instructions={"float": 1e8},
        shared_bytes=0.0,
        products={},
        memory=0.0,
        programs=528,
        longest=1.0,
        warps=4,
        resident=4,
    )
    return gpu_model.Work(**base | changes)


def test_more_resident_warps_issue_more_up_to_the_schedulers():
    rates = [gpu_model.instructions_per_cycle({"float": 1}, warps) for warps in (1, 2, 4, 8, 16, 64)]
    assert rates == sorted(rates) and rates[1] == 2 * rates[0] and 3.9 < rates[-1] <= 4
    assert gpu_model.instructions_per_cycle({"float": 1, "global": 1}, 8) < rates[3]


def test_each_part_of_the_time_follows_its_rate():
    chip = gpu_model.CHIPS["sm_90"]
    cycles = chip.gigahertz * 1e6 * chip.multiprocessors
    assert gpu_model.times(chip, work(memory=4.3e9))["memory"] == pytest.approx(1)
    assert gpu_model.times(chip, work(instructions={"special": cycles / 2}))["special"] == pytest.approx(1)
    assert gpu_model.times(chip, work(products={"bf16": 4096 * cycles}))["products"] == pytest.approx(1)
    assert gpu_model.times(chip, work(products={"f32": 2048 * cycles}))["products"] == pytest.approx(1)
    shared = gpu_model.times(chip, work(shared_bytes=128 * cycles))["shared"]
    assert shared == pytest.approx(gpu_model.CONFLICTS)
    even, uneven = (gpu_model.times(chip, work(longest=longest)) for longest in (1.0, 3.0))
    assert even["longest"] == pytest.approx(even["issue"]) and uneven["longest"] == pytest.approx(3 * even["issue"])


def test_few_programs_leave_multiprocessors_idle():
    chip = gpu_model.CHIPS["sm_90"]
    few, many = (gpu_model.times(chip, work(programs=n, resident=1))["issue"] for n in (66, 132))
    assert few == pytest.approx(2 * many)


# --- the check --------------------------------------------------------------------------------------------------------


def row(instructions: float, kernel: str = "forward_kernel", call: str = "gpu_train") -> dict[str, object]:
    return {"chip": "sm_90", "call": call, "pass": "forward", "kernel": kernel, "instructions": instructions}


KEPT = {"triton": "3.9.0", "rows": [row(1000.0), row(60.0, "term_kernel"), row(5.0, call="long")]}


def test_a_rise_of_four_percent_passes_and_of_six_fails():
    assert not cost_table.faults(KEPT, [row(1040.0), row(60.0, "term_kernel")], "3.9.0")
    (fault,) = cost_table.faults(KEPT, [row(1060.0), row(60.0, "term_kernel")], "3.9.0")
    assert "sm_90, gpu_train, forward, forward_kernel" in fault and "1,060" in fault and "make kernel-costs" in fault


def test_a_kernel_that_came_or_went_makes_the_table_stale():
    (came,) = cost_table.faults(KEPT, [row(1000.0), row(60.0, "term_kernel"), row(1.0, "new_kernel")], "3.9.0")
    assert "new_kernel is not in the kept table" in came
    (went,) = cost_table.faults(KEPT, [row(1000.0)], "3.9.0")
    assert "term_kernel is in the kept table and no longer launched" in went


def test_another_version_of_triton_is_refused_with_what_to_do():
    (fault,) = cost_table.faults(KEPT, [row(1000.0), row(60.0, "term_kernel")], "3.10.0")
    assert "3.10.0" in fault and "install triton==3.9.0" in fault and "make kernel-costs" in fault


# --- all of it --------------------------------------------------------------------------------------------------------


def test_a_house_shape_is_counted_without_a_gpu():
    pytest.importorskip("triton")
    command = [sys.executable, "-W", "ignore", "tools/kernel_costs.py", "--calls", "industrial", "--chips", "sm_90"]
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    forward, backward = (
        [line for line in done.stdout.splitlines() if line.startswith(f"{direction}: ")]
        for direction in ("forward", "backward")
    )
    assert forward and backward
    total = re.search(r"sm_90: industrial +([\d,]+) +([\d.]+) +([\d,]+) +([\d.]+)", done.stdout)
    forward_count, forward_ms, backward_count, backward_ms = (float(each.replace(",", "")) for each in total.groups())
    # D H1 = 1,296 multiply-adds a pair are at least 20 thread instructions on tensor cores, on ordinary units 1,296.
    assert 20 < forward_count < backward_count and 0 < forward_ms < backward_ms < 10
