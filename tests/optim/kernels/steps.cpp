// Steps of the kernels' mathematics without torch: prints what became of the weights, for test_instructions.py.

#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "larc.h"
#include "novograd.h"

namespace {

using Vectors = std::vector<std::vector<float>>;

constexpr int64_t kSizes[] = {5, 0, 4096, 70001, 33};
constexpr int kSteps = 3;
const Larc kLarc{0.01, true, 1e-8, 0.0};

// Numbers between -1 and 1 that Python can make too.
Vectors numbers(uint32_t seed) {
  Vectors result;
  for (uint32_t layer = 0; layer < std::size(kSizes); ++layer) {
    result.emplace_back(kSizes[layer]);
    for (uint32_t i = 0; i < result.back().size(); ++i) {
      const uint32_t bits = (i + 1) * 2654435761u + (seed * 16 + layer + 1) * 2246822519u;
      result.back()[i] = static_cast<float>(bits / 2147483648.0 - 1.0);
    }
  }
  return result;
}

Vectors zeros() {
  Vectors result;
  for (int64_t size : kSizes) {
    result.emplace_back(size);
  }
  return result;
}

// Two threads, one after the other.
const Threads kThreads{2, [](int64_t count, Threads::Work work, void* context) {
                         work(0, count / 2, context);
                         work(count / 2, count, context);
                       }};

void run(const std::string& name, const std::function<void(Vectors& weights, Vectors& grads)>& step) {
  Vectors weights = numbers(0);
  for (int i = 1; i <= kSteps; ++i) {
    Vectors grads = numbers(i);
    step(weights, grads);
  }
  for (size_t layer = 0; layer < weights.size(); ++layer) {
    std::printf("%s %zu", name.c_str(), layer);
    for (size_t i = 0; i < weights[layer].size(); i += 1 + weights[layer].size() / 50) {
      std::printf(" %.9g", weights[layer][i]);
    }
    std::printf("\n");
  }
}

void run_novograd(const std::string& name, NovoGrad options, bool amsgrad) {
  Vectors moments = zeros();
  std::vector<float> second_moments(moments.size()), maxima(moments.size());
  run(name, [&](Vectors& weights, Vectors& grads) {
    std::vector<NovoGradLayer> layers;
    for (size_t i = 0; i < weights.size(); ++i) {
      layers.push_back({weights[i].data(), grads[i].data(), moments[i].data(), &second_moments[i],
                        amsgrad ? &maxima[i] : nullptr, kSizes[i], 0});
    }
    novograd_step(layers, options, kThreads);
  });
}

void run_sgd(const std::string& name, LarcSgd options) {
  Vectors moments = zeros();
  run(name, [&](Vectors& weights, Vectors& grads) {
    std::vector<LarcSgdLayer> layers;
    for (size_t i = 0; i < weights.size(); ++i) {
      layers.push_back(
          {weights[i].data(), grads[i].data(), options.momentum != 0 ? moments[i].data() : nullptr, 1, kSizes[i]});
    }
    larc_sgd_step(layers, options, kLarc, kThreads);
  });
}

void run_adam(const std::string& name, LarcAdam options) {
  Vectors exp_avgs = zeros(), exp_avg_sqs = zeros();
  std::vector<float> steps(exp_avgs.size());
  run(name, [&](Vectors& weights, Vectors& grads) {
    std::vector<LarcAdamLayer> layers;
    for (size_t i = 0; i < weights.size(); ++i) {
      layers.push_back(
          {weights[i].data(), grads[i].data(), exp_avgs[i].data(), exp_avg_sqs[i].data(), &steps[i], kSizes[i]});
    }
    std::vector<float> room(larc_adam_room(layers, kThreads));
    larc_adam_step(layers, options, kLarc, room.data(), kThreads);
  });
}

void run_saved(const std::string& name) {
  run(name, [&](Vectors& weights, Vectors& grads) {
    Vectors copies = zeros();
    std::vector<SavedLayer> layers;
    for (size_t i = 0; i < weights.size(); ++i) {
      layers.push_back({weights[i].data(), copies[i].data(), kSizes[i]});
    }
    larc_save(layers, kThreads);
    for (size_t i = 0; i < weights.size(); ++i) {
      for (size_t j = 0; j < weights[i].size(); ++j) {
        weights[i][j] -= 0.05F * grads[i][j];
      }
    }
    larc_limit(layers, 0.05, kLarc, kThreads);
  });
}

}  // namespace

int main() {
  std::printf("instructions %s\n", loops().instructions);
  run_novograd("novograd", {0.95, 0.5, 0.05, 0.01, 1e-8, 1, 1, false, {}, {}}, true);
  run_novograd("luc", {0.95, 0.5, 0.05, 0.01, 1e-8, 1, 1, false, Luc{1e-3, 1e-8}, {}}, false);
  run_novograd("larc-novograd", {0.95, 0.5, 0.05, 0, 1e-8, 1, 1, false, {}, kLarc}, false);
  run_sgd("sgd", {0.05, 0.01, 0.9, false, false});
  run_sgd("nesterov", {0.05, 0.01, 0.9, true, true});
  run_sgd("no-momentum", {0.05, 0.01, 0, false, false});
  run_adam("adam", {0.9, 0.999, 1e-8, 0.01, 0.1, false, false});
  run_adam("adamw", {0.5, 0.6, 1e-8, 0.01, 0.1, true, true});
  run_saved("saved");
}
