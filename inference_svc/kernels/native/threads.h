// The threads that run a pass together: all of them walk the same list of operations, share the work inside each, and wait
// for each other between two. They spin while a pass runs, for an operation takes microseconds; they sleep between passes.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <sched.h>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace loramux {

inline void relax() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

class Threads {
  public:
    explicit Threads(int count) : count_(count), next_(count) {
        for (int thread = 1; thread < count; thread++) workers_.emplace_back([this, thread] { work(thread); });
    }

    ~Threads() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stopping_ = true;
            generation_.fetch_add(1);
        }
        wake_.notify_all();
        for (std::thread& worker : workers_) worker.join();
    }

    int count() const { return count_; }

    // Calls task(thread) on every thread, this one among them, and returns when all have ended.
    void run(const std::function<void(int)>& task) {
        task_ = &task;
        running_.store(count_ - 1, std::memory_order_relaxed);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            generation_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        current_ = 0;
        task(0);
        for (int spins = 0; running_.load(std::memory_order_acquire) > 0; spins++) wait(spins);
    }

    // Shares items 0..count-1 out and waits for all of them. Each thread begins with its own part, in pieces of `grain`, so
    // that what it wrote last is still in its cache; then it helps the others, so that a thread that the system has taken
    // its core away from holds up one piece only.
    template <typename Body>
    void share(int64_t count, int64_t grain, const Body& body) {
        if (count_ == 1) {
            if (count > 0) body(0, count);
            return;
        }
        for (int i = 0; i < count_; i++) {
            const int part = (current_ + i) % count_;
            const int64_t start = count * part / count_, end = count * (part + 1) / count_;
            for (;;) {
                const int64_t first = start + next_[part].value.fetch_add(grain, std::memory_order_relaxed);
                if (first >= end) break;
                body(first, first + grain < end ? first + grain : end);
            }
        }
        barrier();
    }

  private:
    void barrier() {
        const int phase = phase_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == count_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            for (Counter& counter : next_) counter.value.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
        } else {
            for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; spins++) wait(spins);
        }
    }

    // A thread that is missing may need this very core, or wait for it behind somebody else's work: then sleeping is the
    // one way to let it have its turn.
    static void wait(int spins) {
        if (spins < 2000)
            relax();
        else if (spins < 2050)
            sched_yield();
        else
            std::this_thread::sleep_for(std::chrono::microseconds(20));
    }

    void work(int thread) {
        current_ = thread;
        uint64_t seen = 0;
        for (;;) {
            // A decoding engine starts the next pass within a fraction of a millisecond: spin a little before sleeping.
            for (int spins = 0; spins < 20000 && generation_.load(std::memory_order_acquire) == seen; spins++) relax();
            if (generation_.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != seen; });
            }
            seen = generation_.load(std::memory_order_acquire);
            if (stopping_) return;
            (*task_)(thread);
            running_.fetch_sub(1, std::memory_order_release);
        }
    }

    const int count_;
    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<uint64_t> generation_{0};
    bool stopping_ = false;
    const std::function<void(int)>* task_ = nullptr;
    std::atomic<int> running_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> phase_{0};
    struct alignas(64) Counter {
        std::atomic<int64_t> value{0};
    };
    std::vector<Counter> next_;  // of each thread's part
    static inline thread_local int current_ = 0;
};

}  // namespace loramux
