// The inner loops, compiled for several sets of instructions, and the choice of one when they are first used: the
// library may be run on another machine than it was built on. Nothing but `loops_body.h` is compiled for more than the
// machine's lowest common set, so that no function of a standard library gets instructions that a processor lacks.

#include "loops.h"

#include <cstdlib>
#include <cstring>

namespace {

namespace portable {
#include "loops_body.h"
}  // namespace portable

#if defined(__x86_64__) && defined(__GNUC__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
namespace avx2 {
#include "loops_body.h"
}  // namespace avx2
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push( \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512cd,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
// Vectors of 256 bits: waiting for memory, the loops gain nothing from wider ones, and GCC's are slower there.
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,prefer-vector-width=256")
#endif
namespace avx512 {
#include "loops_body.h"
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

Loops chosen() {
  const char* variable = std::getenv("NOVOGRAD_KERNEL_INSTRUCTIONS");
  const auto asked = [variable](const char* word) { return variable != nullptr && std::strcmp(variable, word) == 0; };
  // Any other word asks for nothing; the loader names it.
  if (has_avx512() && !asked("avx2") && !asked("portable")) {
    return avx512::table("avx512");
  }
  if (has_avx2() && !asked("portable")) {
    return avx2::table("avx2");
  }
  return portable::table("portable");
}

#else

Loops chosen() {
  return portable::table("portable");
}

#endif

}  // namespace

const Loops& loops() {
  static const Loops table = chosen();
  return table;
}
