// tests/support/allocations.h: the allocations of a call, counted or made to fail. The one source of a test includes it before
// all else (Eigen's own check is switched here), and so has no precompiled header (tests/CMakeLists.txt).
// SPDX-License-Identifier: MIT
//
// With glibc and without a sanitizer malloc and its kin are replaced, through which operator new and Eigen allocate. A sanitizer
// has a malloc of its own: there operator new is replaced, and Eigen's allocations are those that its own check sees, by an
// eigen_assert that takes part. The test of each program makes sure that all kinds are seen.
#pragma once

#include <cstdlib>
#include <new>

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
#define ATTN_TESTS_SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define ATTN_TESTS_SANITIZED 1
#endif

namespace support {

inline bool watched = false;
inline long allocations = 0;  // while watched
inline long failing = -1;     // the one that fails, from 0; negative: none does

inline bool fails() { return watched && allocations++ == failing; }
inline void allocate() {
  if (fails()) throw std::bad_alloc();
}

}  // namespace support

#if defined(__GLIBC__) && !defined(ATTN_TESTS_SANITIZED)
namespace support {
inline constexpr bool kMallocIsWatched = true;
}
extern "C" {
void* __libc_malloc(std::size_t) noexcept;
void* __libc_calloc(std::size_t, std::size_t) noexcept;
void* __libc_realloc(void*, std::size_t) noexcept;
void* __libc_memalign(std::size_t, std::size_t) noexcept;

void* malloc(std::size_t bytes) noexcept {
  return support::fails() ? nullptr : __libc_malloc(bytes);
}
void* calloc(std::size_t count, std::size_t bytes) noexcept {
  return support::fails() ? nullptr : __libc_calloc(count, bytes);
}
void* realloc(void* memory, std::size_t bytes) noexcept {
  return support::fails() ? nullptr : __libc_realloc(memory, bytes);
}
void* aligned_alloc(std::size_t alignment, std::size_t bytes) noexcept {
  return support::fails() ? nullptr : __libc_memalign(alignment, bytes);
}
int posix_memalign(void** memory, std::size_t alignment, std::size_t bytes) noexcept {
  *memory = support::fails() ? nullptr : __libc_memalign(alignment, bytes);
  return *memory == nullptr ? 12 : 0;  // ENOMEM
}
}
#else
#define EIGEN_RUNTIME_NO_MALLOC
#define eigen_assert(condition) ((condition) ? (void)0 : support::allocate())
namespace support {
inline constexpr bool kMallocIsWatched = false;
}

void* operator new(std::size_t bytes) {
  support::allocate();
  if (void* memory = std::malloc(bytes == 0 ? 1 : bytes)) return memory;
  throw std::bad_alloc();
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  support::allocate();
  const auto line = static_cast<std::size_t>(alignment);
  if (void* memory = std::aligned_alloc(line, (bytes + line - 1) / line * line)) return memory;
  throw std::bad_alloc();
}
namespace support {
// Apart, as g++ warns where it sees free() beside a new that it has not looked into.
__attribute__((noinline)) inline void release(void* memory) noexcept { std::free(memory); }
}  // namespace support
void operator delete(void* memory) noexcept { support::release(memory); }
void operator delete(void* memory, std::size_t) noexcept { support::release(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { support::release(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  support::release(memory);
}
#endif

#include <Eigen/Core>

namespace support {

/// Watches the allocations of a scope, of which number `fails` fails.
class Watch {
 public:
  explicit Watch(long fails = -1) {
    allow_malloc(false);
    allocations = 0;
    failing = fails;
    watched = true;
  }
  ~Watch() {
    watched = false;
    allow_malloc(true);
  }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

 private:
  static void allow_malloc([[maybe_unused]] bool allowed) {
#if defined(EIGEN_RUNTIME_NO_MALLOC)
    Eigen::internal::set_is_malloc_allowed(allowed);
#endif
  }
};

/// How many allocations the call makes.
template <class Call>
long allocations_in(const Call& call) {
  const Watch watch;
  call();
  return allocations;
}

/// Whether allocation number `before` + 1 of the call was there, and failed.
template <class Call>
bool fails_in(long before, const Call& call) {
  const Watch watch(before);
  try {
    call();
  } catch (const std::bad_alloc&) {
    return true;
  }
  return false;
}

}  // namespace support
