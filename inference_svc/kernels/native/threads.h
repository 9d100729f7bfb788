// The threads that run a pass together: all of them walk the same list of operations, share the work inside each, and wait
// for each other between two. They spin while a pass runs, for an operation takes microseconds; they sleep between passes.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>
#if defined(__linux__)
#include <climits>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace loramux {

inline void relax() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

// The core that this thread runs on, -1 where the system does not tell.
inline int this_core() {
#if defined(__linux__)
    return sched_getcpu();
#else
    return -1;
#endif
}

// A number that threads wait for to change. They never call sched_yield: since Linux 6.18 a thread that yields gives up its
// turns for milliseconds, and whatever else runs on the machine takes them.
class Signal {
  public:
    uint32_t value() const { return value_.load(std::memory_order_acquire); }

    void set(uint32_t value) {
        value_.store(value, std::memory_order_seq_cst);
        if (asleep_.load(std::memory_order_seq_cst) > 0) wake();
    }

    // Returns once the number is no longer `seen`; sleeps after so many turns of a loop of some 50 ns each.
    void wait_while(uint32_t seen, int spins) {
        for (int i = 0; i < spins; i++) {
            if (value() != seen) return;
            relax();
        }
        asleep_.fetch_add(1, std::memory_order_seq_cst);
        while (value_.load(std::memory_order_seq_cst) == seen) sleep(seen);
        asleep_.fetch_sub(1, std::memory_order_relaxed);
    }

  private:
#if defined(__linux__)
    static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t), "the system looks at the number itself");
    void sleep(uint32_t seen) { syscall(SYS_futex, &value_, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0); }
    void wake() { syscall(SYS_futex, &value_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0); }
#else
    void sleep(uint32_t) { std::this_thread::sleep_for(std::chrono::microseconds(20)); }
    void wake() {}
#endif

    std::atomic<uint32_t> value_{0};
    std::atomic<int> asleep_{0};
};

class Threads {
  public:
    explicit Threads(int count) : count_(count), running_(0), places_(count) {
        for (int thread = 1; thread < count; thread++) workers_.emplace_back([this, thread] { work(thread); });
    }

    ~Threads() {
        stopping_ = true;
        pass_.set(pass_.value() + 1);
        for (std::thread& worker : workers_) worker.join();
    }

    int count() const { return count_; }

    // Calls task(thread) on every thread, this one among them, and returns when all have ended.
    void run(const std::function<void(int)>& task) {
        task_ = &task;
        running_.store(count_ - 1, std::memory_order_relaxed);
        const uint32_t over = over_.value();
        pass_.set(pass_.value() + 1);
        current_ = 0;
        task(0);
        if (count_ > 1) over_.wait_while(over, spins());
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
                const int64_t first = start + places_[part].next.fetch_add(grain, std::memory_order_relaxed);
                if (first >= end) break;
                body(first, first + grain < end ? first + grain : end);
            }
        }
        barrier();
    }

  private:
    void barrier() {
        const uint32_t phase = phase_.value();
        places_[current_].core.store(this_core(), std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == count_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            for (Place& place : places_) place.next.store(0, std::memory_order_relaxed);
            phase_.set(phase + 1);
        } else {
            phase_.wait_while(phase, spins());
        }
    }

    // How long to spin for another thread, which has but microseconds to go. Not at all if it was last seen on this very
    // core, which the system may have put it on while something else had its own: it needs the core, and it is by
    // sleeping and being woken that one of the two gets another.
    int spins() const {
        const int core = this_core();
        for (int thread = 0; core >= 0 && thread < count_; thread++)
            if (thread != current_ && places_[thread].core.load(std::memory_order_relaxed) == core) return 0;
        return 2000;
    }

    void work(int thread) {
        current_ = thread;
        uint32_t seen = 0;
        for (;;) {
            // A decoding engine starts the next pass within a fraction of a millisecond: spin longer before sleeping.
            pass_.wait_while(seen, 10 * spins());
            seen = pass_.value();
            if (stopping_) return;
            (*task_)(thread);
            if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) over_.set(over_.value() + 1);
        }
    }

    const int count_;
    std::vector<std::thread> workers_;
    bool stopping_ = false;
    const std::function<void(int)>* task_ = nullptr;
    Signal pass_;  // the number of the pass that runs
    std::atomic<int> running_;
    Signal over_;  // passes that all workers have ended
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) Signal phase_;
    struct alignas(64) Place {
        std::atomic<int64_t> next{0};  // of this thread's part
        std::atomic<int> core{-1};
    };
    std::vector<Place> places_;
    static inline thread_local int current_ = 0;
};

}  // namespace loramux
