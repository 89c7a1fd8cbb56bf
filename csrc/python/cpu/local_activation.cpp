// local_activation of din_kernels._cpu.
#include "din_kernels/local_activation.h"

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"

namespace din_kernels::python {
namespace {

// What forward and backward have in common, as Python passes it.
struct Problem {
    int64_t queries, users, rows_count, dim;
    Address query, rows, begin, length, row_index, query_to_user, pair_begin;
    std::vector<int64_t> widths, param_sizes;  // per hidden layer
    Addresses weights, biases, params;
    std::vector<double> eps;
    Features features;
    Activation activation;
    Normalize normalize;
    double scale;
    Address pooled, logsumexp, pair_weights;
};

Problem problem(int64_t queries, int64_t users, int64_t rows_count, int64_t dim, Address query, Address rows,
                Address begin, Address length, Address row_index, Address query_to_user, Address pair_begin,
                const py::dict& layers, std::vector<double> eps, const std::string& features,
                const std::string& activation, const std::string& normalize, double scale, Address pooled,
                Address logsumexp, Address pair_weights) {
    const auto numbers = [&](const char* key) { return layers[key].cast<std::vector<int64_t>>(); };
    const auto addresses = [&](const char* key) { return layers[key].cast<Addresses>(); };
    Problem p{queries,
              users,
              rows_count,
              dim,
              query,
              rows,
              begin,
              length,
              row_index,
              query_to_user,
              pair_begin,
              numbers("widths"),
              numbers("param_sizes"),
              addresses("weights"),
              addresses("biases"),
              addresses("params"),
              std::move(eps),
              parse<Features>("features", features, {{"concat", Features::kConcat}, {"product", Features::kProduct}}),
              parse<Activation>("activation", activation,
                                {{"sigmoid", Activation::kSigmoid},
                                 {"relu", Activation::kRelu},
                                 {"prelu", Activation::kPrelu},
                                 {"tanh", Activation::kTanh},
                                 {"identity", Activation::kIdentity},
                                 {"dice", Activation::kDice}}),
              parse<Normalize>("normalize", normalize, {{"none", Normalize::kNone}, {"softmax", Normalize::kSoftmax}}),
              scale,
              pooled,
              logsumexp,
              pair_weights};
    const size_t hidden = p.widths.size();
    const size_t per_layer = p.activation == Activation::kDice ? 3 : p.activation == Activation::kPrelu ? 1 : 0;
    if (hidden > size_t(kMaxHidden)) throw std::invalid_argument("layers must hold at most 3 hidden widths");
    if (p.weights.size() != hidden + 1 || p.biases.size() != hidden + 1 || p.param_sizes.size() != hidden ||
        p.params.size() != hidden * per_layer || p.eps.size() != (per_layer == 3 ? hidden : 0))
        throw std::invalid_argument(
            "layers must hold one weight and one bias per hidden width and one more, and eps and the parameters of "
            "the activation per hidden width");
    return p;
}

template <typename T>
LocalActivationArgs<T> arguments(const Problem& p) {
    LocalActivationArgs<T> a{};
    a.queries = p.queries, a.users = p.users, a.rows_count = p.rows_count, a.dim = p.dim;
    a.query = at<const T>(p.query), a.rows = at<const T>(p.rows);
    a.begin = at<const int64_t>(p.begin), a.length = at<const int64_t>(p.length);
    a.row_index = at<const int64_t>(p.row_index), a.query_to_user = at<const int64_t>(p.query_to_user);
    a.pair_begin = at<const int64_t>(p.pair_begin);
    a.hidden = int(p.widths.size());
    const size_t per_layer = a.hidden ? p.params.size() / p.widths.size() : 0;
    for (size_t l = 0; l < p.weights.size(); ++l) {
        Layer<T>& layer = a.layers[l];
        const bool is_hidden = l < p.widths.size();
        layer.width = is_hidden ? p.widths[l] : 1;
        layer.weight = at<const T>(p.weights[l]), layer.bias = at<const T>(p.biases[l]);
        if (!is_hidden) continue;
        for (size_t i = 0; i < per_layer; ++i) layer.params[i] = at<const T>(p.params[l * per_layer + i]);
        layer.param_size = p.param_sizes[l];
        layer.eps = p.eps.empty() ? 0 : p.eps[l];
    }
    a.features = p.features, a.activation = p.activation, a.normalize = p.normalize, a.scale = T(p.scale);
    a.pooled = at<T>(p.pooled), a.logsumexp = at<T>(p.logsumexp), a.pair_weights = at<T>(p.pair_weights);
    return a;
}

struct Gradients {
    Address pooled, pair_weights, query, rows;
    Addresses weights, biases, params;
};

template <typename T>
LocalActivationArgs<T> arguments(const Problem& p, const Gradients& g) {
    LocalActivationArgs<T> a = arguments<T>(p);
    a.grad_pooled = at<const T>(g.pooled), a.grad_pair_weights = at<const T>(g.pair_weights);
    a.grad_query = at<T>(g.query), a.grad_rows = at<T>(g.rows);
    const size_t per_layer = a.hidden ? p.params.size() / p.widths.size() : 0;
    for (size_t l = 0; l < p.weights.size(); ++l) {
        a.layers[l].grad_weight = at<T>(g.weights[l]), a.layers[l].grad_bias = at<T>(g.biases[l]);
        if (l < p.widths.size())
            for (size_t i = 0; i < per_layer; ++i) a.layers[l].grad_params[i] = at<T>(g.params[l * per_layer + i]);
    }
    return a;
}

}  // namespace

void bind_local_activation(py::module_& m) {
    m.def(
        "local_activation_forward",
        [](bool is_double, int64_t queries, int64_t users, int64_t rows_count, int64_t dim, Address query, Address rows,
           Address begin, Address length, Address row_index, Address query_to_user, Address pair_begin,
           const py::dict& layers, std::vector<double> eps, const std::string& features, const std::string& activation,
           const std::string& normalize, double scale, Address pooled, Address logsumexp, Address pair_weights,
           int threads) {
            const Problem p = problem(queries, users, rows_count, dim, query, rows, begin, length, row_index,
                                      query_to_user, pair_begin, layers, std::move(eps), features, activation,
                                      normalize, scale, pooled, logsumexp, pair_weights);
            py::gil_scoped_release release;
            if (is_double)
                local_activation_forward(arguments<double>(p), threads);
            else
                local_activation_forward(arguments<float>(p), threads);
        },
        R"(Pools histories; writes pooled [Q, D], logsumexp [Q] (softmax) and pair_weights, which must hold zeros.

Arrays are addresses, C-contiguous, of float64 (is_double) or float32, indices of int64; 0 stands for an optional one.
    queries, users, rows_count, dim: Q, U, M, D
    query [Q, D], rows [M, D]; history u is positions begin[u] .. begin[u] + length[u] of rows, or of row_index
    query_to_user [Q] or 0: the history of each candidate; pair_begin [Q] or 0: where its weights start
    layers: dict of widths and param_sizes per hidden layer, weights, biases and params as lists of addresses
    eps: of Dice, per hidden layer
    threads: at most so many OpenMP threads; the result does not depend on it)");
    m.def(
        "local_activation_backward",
        [](bool is_double, int64_t queries, int64_t users, int64_t rows_count, int64_t dim, Address query, Address rows,
           Address begin, Address length, Address row_index, Address query_to_user, Address pair_begin,
           const py::dict& layers, std::vector<double> eps, const std::string& features, const std::string& activation,
           const std::string& normalize, double scale, Address pooled, Address logsumexp, Address pair_weights,
           Address grad_pooled, Address grad_pair_weights, Address grad_query, Address grad_rows,
           Addresses grad_weights, Addresses grad_biases, Addresses grad_params, int threads) {
            const Problem p = problem(queries, users, rows_count, dim, query, rows, begin, length, row_index,
                                      query_to_user, pair_begin, layers, std::move(eps), features, activation,
                                      normalize, scale, pooled, logsumexp, pair_weights);
            const Gradients g{grad_pooled,
                              grad_pair_weights,
                              grad_query,
                              grad_rows,
                              std::move(grad_weights),
                              std::move(grad_biases),
                              std::move(grad_params)};
            if (g.weights.size() != p.weights.size() || g.biases.size() != p.biases.size() ||
                g.params.size() != p.params.size())
                throw std::invalid_argument("there must be one gradient per weight, bias and parameter");
            py::gil_scoped_release release;
            if (is_double)
                local_activation_backward(arguments<double>(p, g), threads);
            else
                local_activation_backward(arguments<float>(p, g), threads);
        },
        R"(Writes the gradients of a forward call with the same arguments, given those of pooled and of pair_weights (or 0).

grad_query and grad_rows may be 0: not needed. The others come as lists of addresses like those in layers.)");
}

}  // namespace din_kernels::python
