#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#ifndef __x86_64__
#include <ucontext.h>
#endif

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef __x86_64__
// Saves what a call must preserve on the old stack, loads it from the new one: a few nanoseconds, where swapcontext
// enters the operating system for the signal mask.
extern "C" void din_kernels_switch_stack(void** save, void* load);
asm(R"(
.text
.globl din_kernels_switch_stack
.hidden din_kernels_switch_stack
.type din_kernels_switch_stack, @function
din_kernels_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size din_kernels_switch_stack, .-din_kernels_switch_stack
)");
#endif

namespace din_kernels::emulation {
namespace {

Fiber* starting = nullptr;  // the fiber that begins reads it once

#ifndef __x86_64__
void switch_stack(void** save, void* load) {
    swapcontext(static_cast<ucontext_t*>(*save), static_cast<ucontext_t*>(load));
}
#else
void switch_stack(void** save, void* load) { din_kernels_switch_stack(save, load); }
#endif

}  // namespace

void Fiber::start(char* stack, size_t bytes, void (*entry)(void*), void* argument) {
    stack_ = stack, bytes_ = bytes, entry_ = entry, argument_ = argument;
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(stack, bytes);  // frames of a fiber that was dropped
#endif
#ifdef __x86_64__
    auto top = reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t(15);
    auto* frame = reinterpret_cast<uintptr_t*>(top) - 2;  // a function finds its stack 8 bytes off 16, as after a call
    frame[1] = 0;
    frame[0] = reinterpret_cast<uintptr_t>(&Fiber::begin);
    for (int saved = 0; saved < 6; ++saved) *--frame = 0;
    own_ = frame;
#else
    // The two contexts lie at the low end of the stack.
    auto* own = new (stack) ucontext_t;
    scheduler_ = new (stack + sizeof(ucontext_t)) ucontext_t;
    getcontext(own);
    own->uc_stack.ss_sp = stack + 2 * sizeof(ucontext_t);
    own->uc_stack.ss_size = bytes - 2 * sizeof(ucontext_t);
    own->uc_link = nullptr;
    makecontext(own, &Fiber::begin, 0);
    own_ = own;
#endif
}

void Fiber::begin() {
    Fiber* self = starting;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &self->scheduler_stack_, &self->scheduler_bytes_);
#endif
    self->entry_(self->argument_);
    self->suspend();  // the scheduler resumes no fiber that has ended
}

void Fiber::resume() {
    starting = this;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&fake_scheduler_, stack_, bytes_);
#endif
    switch_stack(&scheduler_, own_);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake_scheduler_, nullptr, nullptr);
#endif
}

void Fiber::suspend() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&fake_own_, scheduler_stack_, scheduler_bytes_);
#endif
    switch_stack(&own_, scheduler_);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake_own_, &scheduler_stack_, &scheduler_bytes_);
#endif
}

namespace {
constexpr size_t kGuard = 64 * 1024;  // a multiple of every page size in use
}

char* Stacks::at(size_t index) {
    while (stacks_.size() <= index) {
        void* stack = mmap(nullptr, kGuard + kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (stack == MAP_FAILED) throw std::bad_alloc();
        mprotect(stack, kGuard, PROT_NONE);
        stacks_.push_back(static_cast<char*>(stack));
    }
    return stacks_[index] + kGuard;
}

Stacks::~Stacks() {
    for (char* stack : stacks_) munmap(stack, kGuard + kBytes);
}

}  // namespace din_kernels::emulation
