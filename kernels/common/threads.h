// Threads: how a kernel spreads independent tasks, whoever owns the pool.
//
// Inside ONNX Runtime the pool is the session's own; a benchmark passes serial(). Tasks may run in
// any order and on any thread, so each writes only what it owns.
#pragma once

#include <cstddef>

namespace tollhouse {

struct Threads {
  void* pool;
  void (*run)(void* pool, size_t tasks, void (*task)(void* state, size_t index), void* state);

  static Threads serial() {
    return {nullptr, [](void*, size_t tasks, void (*task)(void*, size_t), void* state) {
              for (size_t i = 0; i < tasks; i++) task(state, i);
            }};
  }

  template <class Task>
  void parallel(size_t tasks, const Task& task) const {
    if (tasks == 0) return;
    if (tasks == 1) return task(size_t{0});
    run(pool, tasks,
        [](void* state, size_t index) { (*static_cast<const Task*>(state))(index); },
        const_cast<Task*>(&task));
  }
};

}  // namespace tollhouse
