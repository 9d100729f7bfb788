// Memory for what every pass reads: large pages where the system gives them. A pass reads all weights once, and with pages
// of 4 KiB the walks through the page tables cost as much as the reading, above all in a virtual machine.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace loramux {

constexpr size_t LARGE_PAGE = size_t{2} << 20;

// At least so many bytes on a cache line's boundary; two threads so never write to one line unless they mean to.
inline void* allocate(size_t bytes) {
    const size_t page = bytes >= LARGE_PAGE / 16 ? LARGE_PAGE : 64;
    bytes = (bytes + page - 1) / page * page;
    void* memory = std::aligned_alloc(page, bytes);
    if (!memory) throw std::bad_alloc();
#if defined(__linux__)
    if (page == LARGE_PAGE) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return memory;
}

inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }
inline void prefetch_to_write(const void* p) { __builtin_prefetch(p, 1, 3); }

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};

// Working memory that grows; what was in it is lost then. New memory is zero.
template <typename T>
class Buffer {
  public:
    T* reserve(size_t count) {
        if (count > count_) {
            count_ = count + count / 2;
            memory_.reset(static_cast<T*>(allocate(count_ * sizeof(T))));
            std::memset(static_cast<void*>(memory_.get()), 0, count_ * sizeof(T));
        }
        return memory_.get();
    }
    T* data() { return memory_.get(); }
    const T* data() const { return memory_.get(); }

  private:
    std::unique_ptr<T, Free> memory_;
    size_t count_ = 0;
};

// Hands out pieces of large chunks; everything is given back at once.
class Arena {
  public:
    uint8_t* take(size_t bytes) {
        bytes = (bytes + 63) / 64 * 64;
        if (chunks_.empty() || used_ + bytes > size_) {
            size_ = std::max(bytes, CHUNK_BYTES);
            chunks_.emplace_back(static_cast<uint8_t*>(allocate(size_)));
            used_ = 0;
        }
        used_ += bytes;
        total_ += bytes;
        return chunks_.back().get() + used_ - bytes;
    }

    size_t total() const { return total_; }

  private:
    static constexpr size_t CHUNK_BYTES = size_t{32} << 20;
    std::vector<std::unique_ptr<uint8_t, Free>> chunks_;
    size_t size_ = 0, used_ = 0, total_ = 0;
};

}  // namespace loramux
