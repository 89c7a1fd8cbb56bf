// Arrays in global and shared memory. On the GPU an array is a pointer and nothing else. In the emulation every access
// is checked: its bounds, its alignment, and in shared memory the shadow of cuda_emulation/shadow.h.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/device.cuh"
#include "common/numeric.cuh"

namespace din_kernels::cuda {

template <typename T>
class Global {
 public:
    // An array of `size` elements. Null stands for an optional array that is left out.
    __host__ __device__ Global(T* data, int64_t size) : data_(data) {
#ifdef DIN_KERNELS_EMULATE
        size_ = data ? size : 0;
#else
        (void)size;
#endif
    }
    __device__ explicit operator bool() const { return data_ != nullptr; }
    __device__ T operator[](int64_t at) const { return *checked(at, 1); }
    __device__ void store(int64_t at, T value) const { *checked(at, 1) = value; }

    // Accesses the elements at .. at + kCount at once; the address must be aligned to their size.
    template <int kCount>
    __device__ Vector<std::remove_const_t<T>, kCount> load(int64_t at) const {
        return *reinterpret_cast<const Vector<std::remove_const_t<T>, kCount>*>(vector<kCount>(at));
    }
    template <int kCount>
    __device__ void store(int64_t at, Vector<T, kCount> value) const {
        *reinterpret_cast<Vector<T, kCount>*>(vector<kCount>(at)) = value;
    }

    // Both return the value before.
    __device__ T atomic_add(int64_t at, T value) const {
#ifdef DIN_KERNELS_EMULATE
        return exchange(at, (*this)[at] + value);
#else
        return atomicAdd(data_ + at, value);
#endif
    }
    __device__ T atomic_or(int64_t at, T value) const {
#ifdef DIN_KERNELS_EMULATE
        return exchange(at, (*this)[at] | value);
#else
        return atomicOr(data_ + at, value);
#endif
    }

    // The elements at .. at + size as an array of their own.
    __device__ Global part(int64_t at, int64_t size) const { return Global(checked(at, size), size); }

    // The plain address of `size` elements from `at` on, for functions that take one.
    __device__ T* address(int64_t at, int64_t size) const { return checked(at, size); }

 private:
    __device__ T* checked(int64_t at, int64_t size) const {
#ifdef DIN_KERNELS_EMULATE
        if (at < 0 || at + size > size_)
            emulation::fault("global memory is accessed out of bounds: elements " + std::to_string(at) + " .. " +
                             std::to_string(at + size) + " of " + std::to_string(size_));
#else
        (void)size;
#endif
        return data_ + at;
    }
    template <int kCount>
    __device__ T* vector(int64_t at) const {
        T* address = checked(at, kCount);
#ifdef DIN_KERNELS_EMULATE
        emulation::check_aligned("global memory", address, sizeof(T) * kCount);
#endif
        return address;
    }

#ifdef DIN_KERNELS_EMULATE
    // Threads of the emulation are never interrupted, so that this is atomic.
    T exchange(int64_t at, T by) const {
        const T before = *checked(at, 1);
        *checked(at, 1) = by;
        return before;
    }
#endif

    T* data_;
#ifdef DIN_KERNELS_EMULATE
    int64_t size_;
#endif
};

// An array of `size` elements from byte `offset` of the block's shared memory on.
template <typename T>
class Shared {
 public:
    __device__ Shared(uint32_t offset, int size)
#ifdef DIN_KERNELS_EMULATE
        : offset_(offset), size_(size) {
        static_assert(sizeof(T) >= emulation::Shadow::kGrain);
        if (offset % alignof(T)) emulation::fault("a shared array begins at an offset that is not aligned");
        if (offset + uint64_t(size) * sizeof(T) > emulation::shared_size())
            emulation::fault("a shared array ends beyond the shared memory of the launch");
    }
#else
    {
        extern __shared__ __align__(128) unsigned char shared_memory[];
        data_ = reinterpret_cast<T*>(shared_memory + offset);
    }
#endif
    __device__ T operator[](int at) const { return load<1>(at).at[0]; }
    __device__ void store(int at, T value) const { store<1>(at, Vector<T, 1>{{value}}); }

    template <int kCount>
    __device__ Vector<T, kCount> load(int at) const {
#ifdef DIN_KERNELS_EMULATE
        Vector<T, kCount> value;
        std::memcpy(&value, access(at, kCount, emulation::Access::kRead), sizeof(value));
        return value;
#else
        return *reinterpret_cast<const Vector<T, kCount>*>(data_ + at);
#endif
    }
    template <int kCount>
    __device__ void store(int at, Vector<T, kCount> value) const {
#ifdef DIN_KERNELS_EMULATE
        std::memcpy(access(at, kCount, emulation::Access::kWrite), &value, sizeof(value));
#else
        *reinterpret_cast<Vector<T, kCount>*>(data_ + at) = value;
#endif
    }
    __device__ T atomic_add(int at, T value) const {
#ifdef DIN_KERNELS_EMULATE
        T before;
        unsigned char* address = access(at, 1, emulation::Access::kAtomic);
        std::memcpy(&before, address, sizeof(T));
        const T after = before + value;
        std::memcpy(address, &after, sizeof(T));
        return before;
#else
        return atomicAdd(data_ + at, value);
#endif
    }

    // The address of the 16 bytes from `at` on, for ldmatrix and asynchronous copies.
    __device__ uint32_t address_16(int at) const {
#ifdef DIN_KERNELS_EMULATE
        return check(at, int(16 / sizeof(T)));
#else
        return static_cast<uint32_t>(__cvta_generic_to_shared(data_ + at));
#endif
    }

 private:
#ifdef DIN_KERNELS_EMULATE
    uint32_t check(int at, int count) const {
        if (at < 0 || at + count > size_)
            emulation::fault("a shared array is accessed out of bounds: elements " + std::to_string(at) + " .. " +
                             std::to_string(at + count) + " of " + std::to_string(size_));
        const uint32_t byte = offset_ + uint32_t(at) * sizeof(T);
        if (byte % (sizeof(T) * count))
            emulation::fault("shared memory access of " + std::to_string(sizeof(T) * count) + " bytes is not aligned");
        return byte;
    }
    unsigned char* access(int at, int count, emulation::Access kind) const {
        return emulation::shared_access(check(at, count), uint32_t(sizeof(T)) * count, kind);
    }

    uint32_t offset_;
    int size_;
#else
    T* data_;
#endif
};

// Starts to copy 16 bytes to element `to` of a shared array from element `from` of a global one. Zeros replace the
// elements beyond the `valid` first ones.
template <typename T>
__device__ void copy_async_16(const Shared<T>& shared, int to, const Global<const T>& global, int64_t from, int valid) {
    const T* source = global.address(from, valid);
#ifdef DIN_KERNELS_EMULATE
    emulation::check_aligned("global memory", source, 16);
#endif
    ptx::copy_async_16(shared.address_16(to), source, uint32_t(valid * int(sizeof(T))));
}

}  // namespace din_kernels::cuda
