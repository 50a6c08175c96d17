// How the mathematics asks for threads: whoever calls it brings them, so that it needs neither torch nor OpenMP.

#pragma once

#include <cstdint>

// Calls work(begin, end, context) for ranges that make up [0, count), on as many threads as there are; it may not throw.
struct Threads {
  using Work = void (*)(int64_t begin, int64_t end, void* context);

  int64_t number;
  void (*run)(int64_t count, Work work, void* context);

  template <typename Each>
  void for_each(int64_t count, const Each& each) const {
    run(
        count,
        [](int64_t begin, int64_t end, void* context) {
          const Each& each = *static_cast<const Each*>(context);
          for (int64_t i = begin; i < end; ++i) {
            each(i);
          }
        },
        const_cast<void*>(static_cast<const void*>(&each)));
  }
};
