// NovoGrad, alone or under LARC, over float32 layers in memory.

#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "layers.h"

struct Luc {
  double trust, eps;

  double step_size(double weight_norm, double moment_norm, double lr) const {
    const double length = moment_norm + eps;
    return std::min(length == 0 ? 0 : trust * weight_norm / length, lr);
  }
};

struct NovoGrad {
  double beta1, beta2, lr, decay, eps, averaging, grad_scale;
  bool norms_known;
  std::optional<Luc> luc;
  std::optional<Larc> larc;
};

struct NovoGradLayer {
  float* weight;
  const float* grad;
  float* exp_avg;
  float* exp_avg_sq;
  float* max_exp_avg_sq;  // null without amsgrad
  int64_t size;
  double grad_sq_norm;  // where norms are known
};

// One step; returns LARC's factors.
std::vector<double> novograd_step(
    const std::vector<NovoGradLayer>& layers, const NovoGrad& options, const Threads& threads);
