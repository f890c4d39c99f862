// A team of torch's own threads that stays together through a whole computation, with a barrier of its own.
//
// One parallel region per decode step instead of one per matrix: a barrier costs well under a microsecond, entering a
// region several. NOTE: the members must really run at the same time, which torch's OpenMP pool guarantees (one chunk
// per thread) and a queue of work items would not; `openmp` in kernels/cpu/build.py refuses other builds of torch.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdint>
#include <thread>

namespace minimind {

inline void spin_once(int64_t& spins) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
  // A neighbour on the core of a member that we wait for: give it the core.
  if (++spins > 4096) std::this_thread::yield();
}

class Team {
 public:
  int64_t size = 1;

  void barrier() {
    if (size == 1) return;
    const uint32_t seen = generation_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      generation_.store(seen + 1, std::memory_order_release);
      return;
    }
    int64_t spins = 0;
    while (generation_.load(std::memory_order_acquire) == seen) spin_once(spins);
  }

 private:
  alignas(64) std::atomic<int64_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
};

struct Range {
  int64_t begin, end;
};

// This member's share of 0 .. n, in multiples of `block` but for the end.
inline Range share(int64_t n, int64_t block, int64_t rank, int64_t size) {
  const int64_t blocks = (n + block - 1) / block;
  const auto cut = [&](int64_t r) { return std::min(n, blocks * r / size * block); };
  return {cut(rank), cut(rank + 1)};
}

// body(team, rank) on each of torch's threads; it must not throw. Inside another parallel region the team has one
// member.
template <class Body>
void run_team(const Body& body) {
  const int64_t wanted = torch::stable::get_num_threads();
  Team team;
  if (wanted == 1) {
    body(team, int64_t{0});
    return;
  }
  std::atomic<int64_t> started{0}, members{0};
  torch::stable::parallel_for(0, wanted, 1, [&](int64_t begin, int64_t end) {
    const int64_t rank = members.fetch_add(1);
    started.fetch_add(end - begin);
    int64_t spins = 0;
    while (started.load() < wanted) spin_once(spins);
    if (rank == 0) team.size = members.load();
    // The size must be known to all before the first barrier counts.
    started.fetch_add(1);
    while (started.load() < wanted + members.load()) spin_once(spins);
    body(team, rank);
  });
}

}  // namespace minimind
