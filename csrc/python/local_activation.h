// The call of local_activation: entries are named and ordered as in din_kernels/backends/calls.py.
#pragma once

#include "call.h"
#include "din_kernels/local_activation.h"

namespace din_kernels::python {

// Rows [n, D] of tables [V_k, D_k], by ids [n] or without; writes n and D.
inline Source source_of(const Fields& call, const char* tables_name, const char* ids_name, int64_t& rows,
                        int64_t& dim) {
    const std::vector<Array> tables = call.arrays(tables_name), ids = call.arrays(ids_name);
    if (tables.empty() || tables.size() > size_t(kMaxTables))
        throw std::invalid_argument(std::string(tables_name) + " must hold 1 to " + std::to_string(kMaxTables) +
                                    " tables, got " + std::to_string(tables.size()));
    if (!ids.empty() && ids.size() != tables.size())
        throw std::invalid_argument(std::string(ids_name) + " must hold one array per table or none, got " +
                                    std::to_string(ids.size()) + " for " + std::to_string(tables.size()));
    Source source{};
    dim = 0;
    for (size_t k = 0; k < tables.size(); ++k) {
        needs_rank(tables_name, tables[k], 2);
        const int64_t width = tables[k].shape[1];
        source.tables[source.count++] = {tables[k].data, tables[k].shape[0], width,
                                         ids.empty() ? Ids{} : ids_of(ids_name, ids[k])};
        dim += width;
    }
    rows = ids.empty() ? tables[0].shape[0] : ids[0].size();
    return source;
}

inline TypedArray typed_array(const char* name, const Array& array) {
    return {array.data, dtype_of(name, array.dtype), array.size()};
}

inline void read_layers(const Fields& call, LocalActivation& out) {
    const std::vector<Array> weights = call.arrays("weights"), biases = call.arrays("biases"),
                             params = call.arrays("params");
    const auto eps = call.get<std::vector<double>>("eps");
    const size_t layers = weights.size(), per_layer = size_t(params_per_layer(out.activation, out.dice_training));
    if (layers < 1 || layers > size_t(kMaxHidden) + 1)
        throw std::invalid_argument("weights must hold 1 to " + std::to_string(kMaxHidden + 1) +
                                    " layers, the output layer among them, got " + std::to_string(layers));
    const size_t hidden = layers - 1, dice = out.activation == Activation::kDice ? hidden : 0;
    if (biases.size() != layers || params.size() != hidden * per_layer || eps.size() < dice)
        throw std::invalid_argument("there must be " + std::to_string(layers) + " biases, " +
                                    std::to_string(hidden * per_layer) +
                                    " params and for Dice eps per hidden layer, got " + std::to_string(biases.size()) +
                                    ", " + std::to_string(params.size()) + " and " + std::to_string(eps.size()));
    out.hidden = int(hidden);
    for (size_t l = 0; l < layers; ++l) {
        needs_rank("weights", weights[l], 2);
        Layer& layer = out.layers[l];
        layer.width = weights[l].shape[0];
        layer.weight = typed_array("weights", weights[l]), layer.bias = typed_array("biases", biases[l]);
        if (l == hidden) break;
        for (size_t p = 0; p < per_layer; ++p) layer.params[p] = typed_array("params", params[l * per_layer + p]);
        layer.eps = dice ? eps[l] : 0;
    }
}

inline void read_call(const py::dict& described, LocalActivation& out) {
    const Fields call(described);
    int64_t history_dim = 0;
    out.query = source_of(call, "query_tables", "query_ids", out.queries, out.dim);
    out.history = source_of(call, "history_tables", "history_ids", out.history_rows, history_dim);
    if (history_dim != out.dim)
        throw std::invalid_argument("the history must have the query's " + std::to_string(out.dim) + " columns, got " +
                                    std::to_string(history_dim));
    out.dtype = dtype_of("query_tables", call.arrays("query_tables")[0].dtype);
    const Array begin = call.array("begin"), row_index = call.array("row_index");
    out.users = begin.size();
    out.capacity = row_index.given ? row_index.size() : out.history_rows;
    out.begin = call.address<const int64_t>("begin"), out.length = call.address<const int64_t>("length");
    out.row_index = call.address<const int64_t>("row_index"), out.row_mask = call.address<const bool>("row_mask");
    out.query_to_user = call.address<const int64_t>("query_to_user");
    out.pair_begin = call.address<const int64_t>("pair_begin");
    out.total_pairs = call.get<int64_t>("total_pairs");
    out.dice_training = call.get<bool>("dice_training");
    out.features = parse("features", call.text("features"), kFeatures);
    out.activation = parse("activation", call.text("activation"), kActivations);
    out.normalize = parse("normalize", call.text("normalize"), kNormalizations);
    out.scale = call.get<double>("scale");
    read_layers(call, out);
}

// pooled, logsumexp, pair_weights, statistics: written by the forward, read by the backward.
inline void read_result(const py::dict& described, LocalActivation& out) {
    const Fields result(described);
    out.pooled = result.address<void>("pooled"), out.logsumexp = result.address<double>("logsumexp");
    out.pair_weights = result.address<void>("pair_weights"), out.statistics = result.address<void>("statistics");
}

inline RowGrads row_grads(const Fields& gradients, const char* name) {
    const std::vector<Array> arrays = gradients.arrays(name);
    if (arrays.size() > size_t(kMaxTables))
        throw std::invalid_argument(std::string(name) + " must hold at most " + std::to_string(kMaxTables) +
                                    " gradients, got " + std::to_string(arrays.size()));
    RowGrads grads{};
    grads.needed = !arrays.empty();
    for (size_t k = 0; k < arrays.size(); ++k) grads.values[k] = arrays[k].data;
    return grads;
}

// grads: those of pooled and pair_weights. gradients: of query and history, lists that are empty where not needed, and
// of weights, biases and params, like those of the call.
inline void read_backward(const py::dict& given, const py::dict& wanted, LocalActivation& out) {
    const Fields grads(given), gradients(wanted);
    out.grad_pooled = grads.address<const void>("pooled");
    out.grad_pair_weights = grads.address<const void>("pair_weights");
    out.grad_query = row_grads(gradients, "query"), out.grad_history = row_grads(gradients, "history");
    const std::vector<Array> weights = gradients.arrays("weights"), biases = gradients.arrays("biases"),
                             params = gradients.arrays("params");
    const size_t layers = size_t(out.hidden) + 1,
                 per_layer = size_t(params_per_layer(out.activation, out.dice_training));
    if (weights.size() != layers || biases.size() != layers || params.size() != per_layer * size_t(out.hidden))
        throw std::invalid_argument("there must be a gradient per weight, bias and parameter of the call");
    for (size_t l = 0; l < layers; ++l) {
        Layer& layer = out.layers[l];
        layer.grad_weight = weights[l].data, layer.grad_bias = biases[l].data;
        for (size_t p = 0; l + 1 < layers && p < per_layer; ++p) layer.grad_params[p] = params[l * per_layer + p].data;
    }
}

}  // namespace din_kernels::python
