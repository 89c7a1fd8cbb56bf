// The options of the local activation unit by name, for both modules.
#pragma once

#include <string>

#include "din_kernels/local_activation.h"
#include "parse.h"

namespace din_kernels::python {

inline Features parse_features(const std::string& name) {
    return parse<Features>(
        "features", name,
        {{"concat", Features::kConcat}, {"product", Features::kProduct}, {"outer", Features::kOuter}});
}

inline Activation parse_activation(const std::string& name) {
    return parse<Activation>("activation", name,
                             {{"sigmoid", Activation::kSigmoid},
                              {"relu", Activation::kRelu},
                              {"prelu", Activation::kPrelu},
                              {"tanh", Activation::kTanh},
                              {"identity", Activation::kIdentity},
                              {"dice", Activation::kDice}});
}

inline Normalize parse_normalize(const std::string& name) {
    return parse<Normalize>("normalize", name, {{"none", Normalize::kNone}, {"softmax", Normalize::kSoftmax}});
}

}  // namespace din_kernels::python
