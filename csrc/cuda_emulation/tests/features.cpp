// features <number>... prints the columns that the CUDA kernels read of each set in `enum class Features` at D = 3, or
// what refuses it.
#include <cstdlib>
#include <iostream>

#include "local_activation/pack.h"

int main(int count, char** arguments) {
    using namespace din_kernels;
    for (int at = 1; at < count; ++at) {
        cuda::LocalActivation call{};
        call.dim = 3, call.features = Features(std::atoi(arguments[at]));
        try {
            const cuda::FeatureColumns columns = cuda::feature_columns(call);
            std::cout << columns.weight_q << ' ' << columns.weight_k << ' ' << columns.weight_difference << ' '
                      << columns.weight_qk << ' ' << columns.weight_outer << ' ' << columns.total << '\n';
        } catch (const std::invalid_argument& refused) {
            std::cout << refused.what() << '\n';
        }
    }
}
