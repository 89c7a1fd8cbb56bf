// Calls the unit with a number that no feature set has. Prints what refuses it, or "accepted".
#include <cstdio>
#include <stdexcept>

#include "din_kernels/local_activation.h"

int main() {
    using namespace din_kernels;
    const float zeros[64] = {};
    float pooled[3] = {};
    const int64_t begin = 0, length = 2;
    LocalActivation call{};
    call.features = Features(3);
    call.queries = call.users = 1, call.history_rows = call.capacity = 2, call.dim = 3, call.scale = 1.0;
    call.query.tables[0] = {zeros, 1, 3, {}}, call.history.tables[0] = {zeros, 2, 3, {}};
    call.query.count = call.history.count = 1;
    call.begin = &begin, call.length = &length, call.pooled = pooled;
    call.layers[0].width = 1;
    call.layers[0].weight = {zeros, DType::kFloat, 64}, call.layers[0].bias = {zeros, DType::kFloat, 1};
    try {
        local_activation_forward(call, 1);
        std::puts("accepted");
    } catch (const std::invalid_argument& refused) {
        std::puts(refused.what());
    }
}
