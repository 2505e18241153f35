// Counts the memory of tensors that this thread allocates and frees, as a profiler does. For tests; programs do not link it.
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <cstdint>
#include <memory>

namespace {

struct Watch : public c10::MemoryReportingInfoBase {
  int64_t held = 0;
  int64_t most = 0;

  void reportMemoryUsage(void *, int64_t bytes, size_t, size_t, c10::Device) override {
    held += bytes;
    most = std::max(most, held);
  }
  bool memoryProfilingEnabled() const override { return true; }
};

thread_local std::shared_ptr<Watch> watch;

}  // namespace

extern "C" {

void diloco_torch_watch_begin() {
  watch = std::make_shared<Watch>();
  c10::ThreadLocalDebugInfo::_push(c10::DebugInfoKind::PROFILER_STATE, watch);
}

// Ends what was begun; the most bytes that were held at one time, less those that were held before.
int64_t diloco_torch_watch_end() {
  c10::ThreadLocalDebugInfo::_pop(c10::DebugInfoKind::PROFILER_STATE);
  int64_t most = watch->most;
  watch.reset();
  return most;
}
}
