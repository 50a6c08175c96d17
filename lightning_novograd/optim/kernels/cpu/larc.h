// LARC over float32 layers in memory: around SGD, Adam and AdamW in one call, and around any other optimizer's step.

#pragma once

#include <cstdint>
#include <vector>

#include "layers.h"

struct LarcSgd {
  double lr, weight_decay, momentum;
  bool nesterov, maximize;
};

struct LarcSgdLayer {
  float* weight;
  const float* grad;
  float* moment;  // null without momentum
  float share;    // of the gradient in the moment
  int64_t size;
};

// One step of SGD under target gradient; returns the factors.
std::vector<double> larc_sgd_step(
    const std::vector<LarcSgdLayer>& layers, const LarcSgd& options, const Larc& larc, const Threads& threads);

struct LarcAdam {
  double beta1, beta2, eps, lr, weight_decay;
  bool decoupled, maximize;
};

struct LarcAdamLayer {
  float* weight;
  const float* grad;
  float* exp_avg;
  float* exp_avg_sq;
  float* step;
  int64_t size;
};

// Elements of temporary memory that `larc_adam_step` needs.
int64_t larc_adam_room(const std::vector<LarcAdamLayer>& layers, const Threads& threads);

// One step of Adam or AdamW under target update; returns the factors.
std::vector<double> larc_adam_step(
    const std::vector<LarcAdamLayer>& layers, const LarcAdam& options, const Larc& larc, float* room,
    const Threads& threads);

// A layer, and its copy from before the step.
struct SavedLayer {
  float* weight;
  float* saved;
  int64_t size;
};

void larc_save(const std::vector<SavedLayer>& layers, const Threads& threads);

// Scales the way from the copies to the weights; returns the factors.
std::vector<double> larc_limit(
    const std::vector<SavedLayer>& layers, double lr, const Larc& larc, const Threads& threads);
