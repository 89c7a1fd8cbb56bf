// local_activation of din_kernels._cpu.
#include "din_kernels/local_activation.h"

#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "../unit_options.h"
#include "bindings.h"

namespace din_kernels::python {
namespace {

template <typename V>
V entry(const py::dict& dict, const char* key) {
    if (!dict.contains(key)) throw std::invalid_argument(std::string("the call must hold ") + key);
    return dict[key].cast<V>();
}

template <typename T>
T* address(const py::dict& dict, const char* key) {
    return at<T>(entry<Address>(dict, key));
}

Source source(const py::dict& call, const char* key) {
    const auto tables = entry<std::vector<std::tuple<Address, int64_t, Address, bool>>>(call, key);
    if (tables.empty() || tables.size() > size_t(kMaxTables))
        throw std::invalid_argument(std::string(key) + " must hold 1 to 8 tables");
    Source result{};
    for (const auto& [values, width, ids, wide] : tables)
        result.tables[result.count++] = {at<const void>(values), width, {at<const void>(ids), wide}};
    return result;
}

template <typename T>
void set_layers(const py::dict& call, LocalActivationArgs<T>& a) {
    const auto widths = entry<std::vector<int64_t>>(call, "widths"),
               sizes = entry<std::vector<int64_t>>(call, "param_sizes");
    const auto weights = entry<Addresses>(call, "weights"), biases = entry<Addresses>(call, "biases");
    const auto params = entry<Addresses>(call, "params");
    const auto eps = entry<std::vector<double>>(call, "eps");
    const bool dice = a.activation == Activation::kDice;
    const size_t hidden = widths.size(),
                 per_layer = dice ? (a.dice_training ? 1 : 3) : a.activation == Activation::kPrelu;
    if (hidden > size_t(kMaxHidden)) throw std::invalid_argument("widths must hold at most 3 hidden widths");
    if (weights.size() != hidden + 1 || biases.size() != hidden + 1 || params.size() != hidden * per_layer ||
        sizes.size() != params.size() || eps.size() != (dice ? hidden : 0))
        throw std::invalid_argument(
            "there must be one weight and one bias per hidden width and one more, and the parameters of the activation "
            "(for Dice also eps) per hidden width");
    a.hidden = int(hidden);
    for (size_t l = 0; l <= hidden; ++l) {
        Layer<T>& layer = a.layers[l];
        layer.width = l < hidden ? widths[l] : 1;
        layer.weight = at<const T>(weights[l]), layer.bias = at<const T>(biases[l]);
        for (size_t p = 0; l < hidden && p < per_layer; ++p) {
            layer.params[p] = at<const T>(params[l * per_layer + p]);
            layer.param_size[p] = sizes[l * per_layer + p];
        }
        layer.eps = l < hidden && dice ? eps[l] : 0;
    }
}

Storage storage(const py::dict& call) {
    return parse<Storage>("dtype", entry<std::string>(call, "dtype"),
                          {{"float32", Storage::kFloat},
                           {"float64", Storage::kDouble},
                           {"bfloat16", Storage::kBf16},
                           {"float16", Storage::kFp16}});
}

template <typename T>
LocalActivationArgs<T> arguments(const py::dict& call) {
    LocalActivationArgs<T> a{};
    a.queries = entry<int64_t>(call, "queries"), a.users = entry<int64_t>(call, "users");
    a.rows_count = entry<int64_t>(call, "rows_count"), a.dim = entry<int64_t>(call, "dim");
    a.storage = storage(call);
    a.query = source(call, "query"), a.rows = source(call, "rows");
    a.begin = address<const int64_t>(call, "begin"), a.length = address<const int64_t>(call, "length");
    a.row_index = address<const int64_t>(call, "row_index"), a.row_mask = address<const bool>(call, "row_mask");
    a.query_to_user = address<const int64_t>(call, "query_to_user");
    a.pair_begin = address<const int64_t>(call, "pair_begin");
    a.features = parse_features(entry<std::string>(call, "features"));
    a.activation = parse_activation(entry<std::string>(call, "activation"));
    a.dice_training = entry<bool>(call, "dice_training");
    a.normalize = parse_normalize(entry<std::string>(call, "normalize"));
    a.scale = T(entry<double>(call, "scale"));
    a.pooled = address<T>(call, "pooled"), a.logsumexp = address<double>(call, "logsumexp");
    a.pair_weights = address<T>(call, "pair_weights"), a.statistics = address<T>(call, "statistics");
    set_layers(call, a);
    return a;
}

RowGrads row_grads(const py::dict& grads, const char* key, const Source& source) {
    const auto values = entry<Addresses>(grads, key);
    if (!values.empty() && values.size() != size_t(source.count))
        throw std::invalid_argument(std::string("grads must hold one of ") + key + " per table, or none");
    RowGrads result{};
    result.needed = !values.empty();
    for (size_t k = 0; k < values.size(); ++k) result.values[k] = at<void>(values[k]);
    return result;
}

template <typename T>
void set_gradients(const py::dict& grads, LocalActivationArgs<T>& a) {
    a.grad_pooled = address<const T>(grads, "pooled"), a.grad_pair_weights = address<const T>(grads, "pair_weights");
    a.grad_query = row_grads(grads, "query", a.query), a.grad_rows = row_grads(grads, "rows", a.rows);
    const auto weights = entry<Addresses>(grads, "weights"), biases = entry<Addresses>(grads, "biases");
    const auto params = entry<Addresses>(grads, "params");
    const size_t layers = size_t(a.hidden) + 1, per_layer = a.hidden ? params.size() / size_t(a.hidden) : 0;
    if (weights.size() != layers || biases.size() != layers)
        throw std::invalid_argument("grads must hold one gradient per weight and bias");
    for (size_t l = 0; l < layers; ++l) {
        a.layers[l].grad_weight = at<T>(weights[l]), a.layers[l].grad_bias = at<T>(biases[l]);
        for (size_t p = 0; l + 1 < layers && p < per_layer; ++p)
            a.layers[l].grad_params[p] = at<T>(params[l * per_layer + p]);
    }
}

template <typename Body>
void in_arithmetic_type(const py::dict& call, const Body& body) {
    if (storage(call) == Storage::kDouble)
        body(double{});
    else
        body(float{});
}

}  // namespace

void bind_local_activation(py::module_& m) {
    m.def(
        "local_activation_forward",
        [](const py::dict& call, int threads) {
            in_arithmetic_type(call, [&](auto zero) {
                const auto args = arguments<decltype(zero)>(call);
                py::gil_scoped_release release;
                local_activation_forward(args, threads);
            });
        },
        R"(Writes pooled [Q, D], logsumexp [Q] (softmax), statistics (dice_training) and pair_weights, which must hold zeros.

`call` holds, with addresses of C-contiguous arrays (0 where an optional one is left out) and T for float64 where dtype
is that and float32 else:
    dtype: of query and rows: float32, float64, bfloat16 or float16
    queries, users, rows_count, dim: Q, U, M, D
    query [Q, D], rows [M, D]: lists of tables (values, width, ids, whether ids are int64 or else int32); row n of a table
        without ids is its row n
    begin, length [U] int64: history u is positions begin[u] .. begin[u] + length[u] of rows, or of row_index int64
    row_mask [M] bool or 0: rows that are false count in Dice's statistics and nowhere else
    query_to_user [Q] int64 or 0: the history of each candidate; pair_begin [Q] int64 or 0: where its weights start
    widths: of the hidden layers; weights, biases: of T, one more than widths; params, param_sizes: of the activation,
        layer by layer; eps: of Dice, per hidden layer
    features, activation, dice_training, normalize, scale
    pooled, pair_weights, statistics: of T; logsumexp: of float64
threads: at most so many OpenMP threads; the result does not depend on it.)");
    m.def(
        "local_activation_backward",
        [](const py::dict& call, const py::dict& grads, int threads) {
            in_arithmetic_type(call, [&](auto zero) {
                auto args = arguments<decltype(zero)>(call);
                set_gradients(grads, args);
                py::gil_scoped_release release;
                local_activation_backward(args, threads);
            });
        },
        R"(Writes the gradients of a forward call, given its `call` and those of pooled and of pair_weights (or 0).

`grads` holds addresses: pooled, pair_weights; query (of T) and rows (of dtype): one per table, or none where not needed;
weights, biases and params like those of the call.)");
}

}  // namespace din_kernels::python
