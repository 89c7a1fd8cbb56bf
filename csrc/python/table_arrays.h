// Arrays of several types and update rules, as the ops on tables take them.
#pragma once

#include <string>

#include "din_kernels/arrays.h"
#include "din_kernels/sparse_update.h"
#include "parse.h"

namespace din_kernels::python {

// body(S{}) with the element type that `dtype` names.
template <typename Body>
auto with_dtype(const std::string& dtype, const Body& body) {
    enum class Type { kFloat, kDouble, kBFloat16, kFloat16 };
    switch (parse<Type>("dtype", dtype,
                        {{"float32", Type::kFloat},
                         {"float64", Type::kDouble},
                         {"bfloat16", Type::kBFloat16},
                         {"float16", Type::kFloat16}})) {
        case Type::kDouble:
            return body(double{});
        case Type::kBFloat16:
            return body(BFloat16{});
        case Type::kFloat16:
            return body(Float16{});
        default:
            return body(float{});
    }
}

inline Ids ids_at(Address address, const std::string& type) {
    return {at<const void>(address), parse<bool>("id_type", type, {{"int32", false}, {"int64", true}})};
}

inline Counts counts_at(Address address, const std::string& type) {
    return {at<const void>(address), parse<CountType>("count_type", type,
                                                      {{"int32", CountType::kInt32},
                                                       {"int64", CountType::kInt64},
                                                       {"float32", CountType::kFloat},
                                                       {"float64", CountType::kDouble}})};
}

inline UpdateRule update_rule(const std::string& name) {
    return parse<UpdateRule>("rule", name,
                             {{"sgd", UpdateRule::kSgd},
                              {"momentum", UpdateRule::kMomentum},
                              {"nesterov", UpdateRule::kNesterov},
                              {"adagrad", UpdateRule::kAdagrad},
                              {"rowwise_adagrad", UpdateRule::kRowwiseAdagrad},
                              {"adam", UpdateRule::kAdam}});
}

}  // namespace din_kernels::python
