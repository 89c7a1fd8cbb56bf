// Arrays of several types, as the ops on tables take them.
#pragma once

#include <string>

#include "bindings.h"
#include "din_kernels/sparse_update.h"

namespace din_kernels::python {

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

}  // namespace din_kernels::python
