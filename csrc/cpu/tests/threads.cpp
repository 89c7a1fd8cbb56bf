// Every op on several threads, called by several threads at once, for ThreadSanitizer (`make test-cpu-threads`). Exits
// with 1 where a result differs, bit for bit, from that of one thread.
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "din_kernels/dice.h"
#include "din_kernels/local_activation.h"
#include "din_kernels/mba_penalty.h"
#include "din_kernels/sparse_update.h"

namespace {

using namespace din_kernels;
using Floats = std::vector<float>;

constexpr int kCallers = 3, kThreads = 3;

Floats normal(size_t count, int seed) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> distribution(0.0f, 0.5f);
    Floats values(count);
    for (float& value : values) value = distribution(generator);
    return values;
}

TypedArray typed(const Floats& values) { return {values.data(), DType::kFloat, int64_t(values.size())}; }

struct Options {
    Features features;
    Activation activation;
    Normalize normalize;
    bool shared;  // candidates share histories
};

// Outputs and gradients of a call of the unit, one behind the other.
Floats unit(const Options& options, int seed, int threads) {
    constexpr int64_t kUsers = 40, kDim = 12, kWidths[] = {20, 7, 1};
    std::vector<int64_t> begin, length, user;
    int64_t rows = 0;
    for (int64_t u = 0; u < kUsers; ++u) {
        begin.push_back(rows), length.push_back(u == 7 ? 2000 : u * 5 % 64);  // one of them is cut into blocks
        rows += length.back();
    }
    for (int64_t i = 0; i < kUsers; ++i) user.push_back(i % 9);
    const Floats query = normal(kUsers * kDim, seed), history = normal(rows * kDim, seed + 1);
    const int64_t in = options.features == Features::kConcat ? 4 * kDim : 2 * kDim + kDim * kDim;
    const Floats weights[] = {normal(kWidths[0] * in, 2), normal(kWidths[1] * kWidths[0], 3), normal(kWidths[1], 4)};
    const Floats biases[] = {normal(kWidths[0], 5), normal(kWidths[1], 6), normal(1, 7)};
    const Floats alphas[] = {normal(kWidths[0], 8), normal(kWidths[1], 9)};
    Floats pooled(kUsers * kDim), statistics(2 * (kWidths[0] + kWidths[1])), grad_query(pooled.size()),
        grad_history(history.size());
    std::vector<double> logsumexp(kUsers);
    Floats grad_weights[3], grad_biases[3], grad_alphas[2];
    const Floats grad_pooled = normal(pooled.size(), 10);

    LocalActivation call{};
    call.dtype = DType::kFloat, call.queries = kUsers, call.users = kUsers, call.dim = kDim;
    call.history_rows = call.capacity = rows;
    call.query.tables[0] = {query.data(), kUsers, kDim, {}}, call.query.count = 1;
    call.history.tables[0] = {history.data(), rows, kDim, {}}, call.history.count = 1;
    call.begin = begin.data(), call.length = length.data();
    call.query_to_user = options.shared ? user.data() : nullptr;
    call.features = options.features, call.activation = options.activation, call.normalize = options.normalize;
    call.dice_training = options.activation == Activation::kDice, call.scale = 0.7;
    call.hidden = 2;
    for (int l = 0; l < 3; ++l) {
        Layer& layer = call.layers[l];
        layer.width = kWidths[l], layer.weight = typed(weights[l]), layer.bias = typed(biases[l]), layer.eps = 1e-8;
        grad_weights[l].resize(weights[l].size()), grad_biases[l].resize(biases[l].size());
        layer.grad_weight = grad_weights[l].data(), layer.grad_bias = grad_biases[l].data();
        if (l == 2 || !call.dice_training) continue;
        grad_alphas[l].resize(alphas[l].size());
        layer.params[0] = typed(alphas[l]), layer.grad_params[0] = grad_alphas[l].data();
    }
    call.pooled = pooled.data(), call.logsumexp = logsumexp.data(), call.statistics = statistics.data();
    local_activation_forward(call, threads);
    call.grad_pooled = grad_pooled.data();
    call.grad_query.values[0] = grad_query.data(), call.grad_query.needed = true;
    call.grad_history.values[0] = grad_history.data(), call.grad_history.needed = true;
    local_activation_backward(call, threads);

    Floats all;
    for (const Floats* each : {&pooled, &statistics, &grad_query, &grad_history, &grad_weights[0], &grad_weights[1],
                               &grad_weights[2], &grad_biases[0], &grad_biases[1], &grad_biases[2], &grad_alphas[0]})
        all.insert(all.end(), each->begin(), each->end());
    return all;
}

Floats dice(int seed, int threads) {
    constexpr int64_t kRows = 9000, kChannels = 19;
    const Floats x = normal(kRows * kChannels, seed), grad_y = normal(x.size(), seed + 1);
    const Floats alpha = normal(kChannels, 2);
    Floats mean(kChannels), var(kChannels), y(x.size()), grad_x(x.size()), grad_alpha(kChannels);
    Dice call{};
    call.dtype = DType::kFloat, call.rows = kRows, call.channels = kChannels, call.x = x.data();
    call.alpha = alpha.data(), call.mean = mean.data(), call.var = var.data(), call.eps = 1e-8, call.training = true;
    call.y = y.data(), call.grad_y = grad_y.data(), call.grad_x = grad_x.data(), call.grad_alpha = grad_alpha.data();
    dice_forward(call, threads);
    dice_backward(call, threads);
    y.insert(y.end(), grad_x.begin(), grad_x.end());
    y.insert(y.end(), grad_alpha.begin(), grad_alpha.end());
    return y;
}

// The penalty's gradient and an Adam step of a table, rows that are in every block among the ids.
Floats table(int seed, int threads) {
    constexpr int64_t kRows = 5000, kDim = 9, kEntries = 20000;
    Floats weight = normal(kRows * kDim, seed), first(weight.size()), second(weight.size()), out(weight.size());
    const Floats grads = normal(kEntries * kDim, seed + 1);
    std::vector<int64_t> ids(kEntries), unique(kEntries), counts(kRows, 3);
    for (int64_t i = 0; i < kEntries; ++i) ids[i] = i % 3 == 0 ? 17 : i * 7919 % kRows;
    MbaPenalty penalty{};
    penalty.dtype = DType::kFloat, penalty.rows = kRows, penalty.dim = kDim, penalty.entries = kEntries;
    penalty.weight = weight.data(), penalty.ids = {ids.data(), true},
    penalty.counts = {counts.data(), CountType::kInt64};
    penalty.coeff = 0.1, penalty.padding_idx = 4, penalty.unique = unique.data(), penalty.dense = true;
    penalty.out = out.data();
    int64_t found = 0;
    const double value = mba_penalty_forward(penalty, found, threads);
    mba_penalty_backward(penalty, found, 2.0, threads);
    SparseUpdate step{};
    step.dtype = DType::kFloat, step.rows = kRows, step.dim = kDim, step.entries = kEntries;
    step.weight = weight.data(), step.first = first.data(), step.second = second.data();
    step.ids = penalty.ids, step.grads = grads.data(), step.counts = penalty.counts, step.padding_idx = 4;
    step.rule = UpdateRule::kAdam, step.lr = step.step = 0.01, step.beta1 = 0.9, step.beta2 = 0.99, step.eps = 1e-8;
    step.coeff = 0.1;
    sparse_update(step, threads);
    weight.insert(weight.end(), out.begin(), out.end());
    weight.push_back(float(value));
    return weight;
}

std::vector<Floats> everything(int seed, int threads) {
    const Options options[] = {{Features::kConcat, Activation::kSigmoid, Normalize::kSoftmax, false},
                               {Features::kConcat, Activation::kDice, Normalize::kNone, true},
                               {Features::kOuter, Activation::kSigmoid, Normalize::kSoftmax, true}};
    std::vector<Floats> all;
    for (const Options& each : options) all.push_back(unit(each, seed, threads));
    all.push_back(dice(seed, threads));
    all.push_back(table(seed, threads));
    return all;
}

bool same(const std::vector<Floats>& a, const std::vector<Floats>& b) {
    for (size_t i = 0; i < a.size(); ++i)
        if (std::memcmp(a[i].data(), b[i].data(), a[i].size() * sizeof(float)) != 0) return false;
    return true;
}

}  // namespace

int main() {
    std::vector<std::vector<Floats>> alone(kCallers), together(kCallers);
    for (int caller = 0; caller < kCallers; ++caller) alone[caller] = everything(100 * caller, 1);
    std::vector<std::thread> callers;
    for (int caller = 0; caller < kCallers; ++caller)
        callers.emplace_back([&, caller] { together[caller] = everything(100 * caller, kThreads); });
    for (std::thread& caller : callers) caller.join();
    for (int caller = 0; caller < kCallers; ++caller)
        if (!same(alone[caller], together[caller])) {
            std::printf("caller %d: %d threads give another result than one\n", caller, kThreads);
            return 1;
        }
    std::puts("the same for any number of threads");
}
