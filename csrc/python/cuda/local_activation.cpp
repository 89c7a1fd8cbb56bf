// local_activation of din_kernels._cuda. A call is a dict, since forward, backward and the plan describe the same one.
#include "din_kernels/cuda/local_activation.h"

#include <tuple>

#include "../table_arrays.h"
#include "../unit_options.h"
#include "bindings.h"

namespace din_kernels::python {
namespace {

template <typename T>
T get(const py::dict& call, const char* key, T otherwise = T{}) {
    return call.contains(key) ? call[key].cast<T>() : otherwise;
}

template <typename T>
T* array(const py::dict& call, const char* key) {
    return at<T>(get<Address>(call, key));
}

// (address, dtype, size)
cuda::TypedArray typed_array(const py::handle& value) {
    const auto [address, dtype, size] = value.cast<std::tuple<Address, std::string, int64_t>>();
    return {at<const void>(address), dtype_of(dtype), size};
}

// List of (address, rows, width, address of ids or 0, id type).
cuda::RowTables row_tables(const py::list& value) {
    cuda::RowTables tables{};
    for (const py::handle each : value) {
        if (tables.tables == cuda::kMaxTables) throw std::invalid_argument("there must be at most 8 tables");
        const auto [address, rows, width, ids, id_type] =
            each.cast<std::tuple<Address, int64_t, int64_t, Address, std::string>>();
        const int k = tables.tables++;
        tables.data[k] = at<const void>(address), tables.rows[k] = rows, tables.width[k] = width;
        tables.ids[k] = ids_at(ids, id_type);
    }
    return tables;
}

cuda::LocalActivation call_of(const py::dict& d) {
    cuda::LocalActivation call{};
    call.dtype = dtype_of(get<std::string>(d, "dtype"));
    call.precision = parse<cuda::Precision>(
        "precision", get<std::string>(d, "precision"),
        {{"highest", cuda::Precision::kHighest}, {"tensor cores", cuda::Precision::kTensorCores}});
    call.queries = get<int64_t>(d, "queries"), call.users = get<int64_t>(d, "users");
    call.rows_count = get<int64_t>(d, "rows_count"), call.capacity = get<int64_t>(d, "capacity");
    call.dim = get<int64_t>(d, "dim"), call.total_pairs = get<int64_t>(d, "total_pairs");
    call.query = row_tables(d["query"]), call.rows = row_tables(d["rows"]);
    call.begin = array<const int64_t>(d, "begin"), call.length = array<const int64_t>(d, "length");
    call.row_index = array<const int64_t>(d, "row_index");
    call.row_mask = array<const bool>(d, "row_mask");
    call.query_to_user = array<const int64_t>(d, "query_to_user");
    call.pair_begin = array<const int64_t>(d, "pair_begin");
    const auto layers = d["layers"].cast<std::vector<py::dict>>();
    if (layers.empty() || layers.size() > kMaxHidden + 1)
        throw std::invalid_argument("layers must be 1 to 4, the output layer among them, got " +
                                    std::to_string(layers.size()));
    call.hidden = int(layers.size()) - 1;
    for (size_t l = 0; l < layers.size(); ++l) {
        cuda::UnitLayer& layer = call.layers[l];
        layer.width = get<int64_t>(layers[l], "width"), layer.eps = get<double>(layers[l], "eps");
        layer.weight = typed_array(layers[l]["weight"]), layer.bias = typed_array(layers[l]["bias"]);
        int k = 0;
        for (const py::handle param : layers[l]["params"]) layer.params[k++] = typed_array(param);
        layer.grad_weight = array<float>(layers[l], "grad_weight");
        layer.grad_bias = array<float>(layers[l], "grad_bias");
        layer.grad_param = array<float>(layers[l], "grad_param");
        layer.grad_u = array<float>(layers[l], "grad_u"), layer.grad_u_u = array<float>(layers[l], "grad_u_u");
    }
    call.features = parse_features(get<std::string>(d, "features"));
    call.activation = parse_activation(get<std::string>(d, "activation"));
    call.normalize = parse_normalize(get<std::string>(d, "normalize"));
    call.dice_training = get<bool>(d, "dice_training"), call.scale = get<float>(d, "scale");
    call.pooled = array<void>(d, "pooled"), call.logsumexp = array<double>(d, "logsumexp");
    call.pair_weights = array<float>(d, "pair_weights"), call.statistics = array<float>(d, "statistics");
    call.grad_pooled = array<const void>(d, "grad_pooled");
    call.grad_pair_weights = array<const float>(d, "grad_pair_weights");
    call.grad_query = array<void>(d, "grad_query"), call.grad_rows = array<void>(d, "grad_rows");
    call.grad_pairs = array<float>(d, "grad_pairs"), call.pairs = get<int64_t>(d, "pairs");
    call.chunk_bytes = get<int64_t>(d, "chunk_bytes"), call.workspace = array<void>(d, "workspace");
    return call;
}

// `name` and, for its scratch memory, `name`_workspace.
void bind_call(py::module_& m, const std::string& name, int64_t (*workspace)(const cuda::LocalActivation&),
               void (*run)(const cuda::LocalActivation&, cuda::Stream), const char* doc) {
    m.def((name + "_workspace").c_str(), [=](const py::dict& call) { return workspace(call_of(call)); },
          ("Bytes of scratch memory that " + name + " needs.").c_str());
    m.def(
        name.c_str(),
        [=](const py::dict& described, Address stream) {
            const cuda::LocalActivation call = call_of(described);
            py::gil_scoped_release release;
            run(call, stream_at(stream));
        },
        doc);
}

}  // namespace

void bind_local_activation(py::module_& m) {
    m.def(
        "local_activation_plan",
        [](const py::dict& call, bool backward, int multiprocessors, int64_t shared_per_block) {
            const cuda::DeviceLimits device{0, multiprocessors, shared_per_block};
            const cuda::LaunchPlan plan = (backward ? cuda::local_activation_backward_plan
                                                    : cuda::local_activation_forward_plan)(call_of(call), device);
            return py::dict(py::arg("rows") = plan.rows, py::arg("stages") = plan.stages,
                            py::arg("threads") = plan.threads, py::arg("blocks") = plan.blocks,
                            py::arg("shared_bytes") = plan.shared_bytes,
                            py::arg("workspace_bytes") = plan.workspace_bytes,
                            py::arg("gradient_in_shared") = plan.gradient_in_shared, py::arg("folded") = plan.folded,
                            py::arg("chunk") = plan.chunk);
        },
        py::arg("call"), py::arg("backward"), py::arg("multiprocessors"), py::arg("shared_per_block"),
        "How a call would be launched on a device of that size; needs no device.");
    bind_call(
        m, "local_activation_forward", cuda::local_activation_forward_workspace, cuda::local_activation_forward,
        R"(Pools histories; writes pooled [Q, D], logsumexp [Q] (softmax), pair_weights, which must hold zeros, and statistics.

The call is a dict with the fields of LocalActivation in din_kernels/cuda/local_activation.h; arrays are addresses on
the device, C-contiguous, 0 or left out where optional; weights, biases and params are (address, dtype, size); query and
rows are lists of (address, rows, width, address of ids, id type).)");
    bind_call(m, "local_activation_backward", cuda::local_activation_backward_workspace,
              cuda::local_activation_backward,
              R"(Writes the gradients of a forward call, given its results and the gradients of pooled and pair_weights.

grad_rows holds zeros and is of the rows' dtype, or, with query_to_user, of float32; instead of it grad_pairs [pairs, D] of
float32 takes the gradient of every pair's row, candidate by candidate.)");
}

}  // namespace din_kernels::python
