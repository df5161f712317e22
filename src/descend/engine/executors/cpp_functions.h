// Functions that written kernels call: numbers as torch has them, in a form that compilers turn into vectors.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

// The C library has vectors of these on this processor.
#if defined(__GLIBC__) && defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
extern "C" {
__attribute__((simd("notinbranch"))) float powf(float, float) noexcept;
__attribute__((simd("notinbranch"))) double pow(double, double) noexcept;
__attribute__((simd("notinbranch"))) float expf(float) noexcept;
__attribute__((simd("notinbranch"))) double exp(double) noexcept;
__attribute__((simd("notinbranch"))) float logf(float) noexcept;
__attribute__((simd("notinbranch"))) double log(double) noexcept;
}
#endif

inline float power(float x, float y) { return powf(x, y); }
inline double power(double x, double y) { return pow(x, y); }
inline float exponential(float x) { return expf(x); }
inline double exponential(double x) { return exp(x); }
inline float logarithm(float x) { return logf(x); }
inline double logarithm(double x) { return log(x); }

// All that is done with these is to become another number. Of structures compilers make no vectors.
enum class bfloat16 : uint16_t {};

template <class To, class From>
inline To bits(From x) {
    static_assert(sizeof(To) == sizeof(From));
    To made;
    std::memcpy(&made, &x, sizeof made);
    return made;
}

template <class To>
struct Cast {
    template <class From>
    static To of(From x) {
        return static_cast<To>(x);
    }
    static To of(bool x) { return x ? To(1) : To(0); }  // of conversions compilers make no vectors
    static To of(bfloat16 x) { return static_cast<To>(bits<float>(uint32_t(x) << 16)); }
};

template <>
struct Cast<bool> {
    template <class From>
    static bool of(From x) {
        return x != 0;
    }
};

template <>
struct Cast<bfloat16> {  // to the nearest, of two the even one
    static bfloat16 of(float x) {
        uint32_t all = bits<uint32_t>(x);
        uint32_t nearest = (all + 0x7FFF + ((all >> 16) & 1)) >> 16;
        return bfloat16(x != x ? 0x7FC0 : nearest);
    }
    static bfloat16 of(bfloat16 x) { return x; }
    template <class From>
    static bfloat16 of(From x) {
        return of(static_cast<float>(x));
    }
};

template <class To, class From>
inline To to(From x) {
    return Cast<To>::of(x);
}

template <class T>
inline T absolute(T x) {
    return x < 0 ? -x : x;
}
inline float absolute(float x) { return __builtin_fabsf(x); }
inline double absolute(double x) { return __builtin_fabs(x); }

inline float root(float x) { return __builtin_sqrtf(x); }
inline double root(double x) { return __builtin_sqrt(x); }

inline float below(float x) { return __builtin_floorf(x); }
inline double below(double x) { return __builtin_floor(x); }

// To the nearest whole number, of two the even one.
inline float even(float x) { return __builtin_rintf(x); }
inline double even(double x) { return __builtin_rint(x); }

inline float signed_as(float x, float y) { return __builtin_copysignf(x, y); }
inline double signed_as(double x, double y) { return __builtin_copysign(x, y); }

// -1, 0 or 1; 0 of a NaN.
template <class T>
inline T sign(T x) {
    return T(x > 0) - T(x < 0);
}

// The smaller and the larger one; NaN if one is. In two steps, of which compilers make vectors.
template <class T>
inline T smaller(T x, T y) {
    const T least = x < y ? x : y;
    return x != x ? x : least;
}
template <class T>
inline T larger(T x, T y) {
    const T most = x > y ? x : y;
    return x != x ? x : most;
}

template <class T>
inline T inverted(T x) {
    return ~x;
}
inline bool inverted(bool x) { return !x; }

// What is left of whole numbers, with the sign of y, and the quotient rounded down.
template <class T>
inline T modulo(T x, T y) {
    T rest = x % y;
    return rest != 0 && (rest < 0) != (y < 0) ? rest + y : rest;
}
template <class T>
inline T floored(T x, T y) {
    return x / y - (x % y != 0 && (x < 0) != (y < 0));
}

// The largest of a row, in as many lanes as a vector may have.
template <int N, class T>
inline T largest(const T* x) {
    constexpr int lanes = N % 16 ? 1 : 16;
    T most[lanes];
    for (int lane = 0; lane < lanes; lane++) most[lane] = x[lane];
    for (int start = lanes; start < N; start += lanes) {
        #pragma omp simd
        for (int lane = 0; lane < lanes; lane++) most[lane] = larger(x[start + lane], most[lane]);
    }
    for (int half = lanes / 2; half; half /= 2)
        for (int lane = 0; lane < half; lane++) most[lane] = larger(most[lane + half], most[lane]);
    return most[0];
}

// The sums of each parameter, of those of its chunks.
template <int N, class T>
inline void total(const T* partials, T* totals, const int32_t* jobs, int64_t job_count, int64_t program_count) {
    for (int64_t i = 0; i < N * job_count; i++) totals[i] = 0;  // some have no elements
    for (int64_t program = 0; program < program_count;) {
        const int32_t job = jobs[program];
        double found[N] = {};
        for (; program < program_count && jobs[program] == job; program++)
            for (int i = 0; i < N; i++) found[i] += partials[program * N + i];
        for (int i = 0; i < N; i++) totals[job * N + i] = found[i];
    }
}

// A single number of state goes where each parameter has it, once all chunks have read the last one.
template <class T>
inline void scatter(const int64_t* held, const T* numbers, int64_t job_count) {
    for (int64_t job = 0; job < job_count; job++) *(T*)held[job] = numbers[job];
}

// Room for numbers, which is nobody's before it is written to.
template <class T>
struct Buffer {
    T* const data;
    explicit Buffer(int64_t count) : data(static_cast<T*>(std::malloc(count * sizeof(T)))) {}
    Buffer(const Buffer&) = delete;
    ~Buffer() { std::free(data); }
};

// What the chunks of a parameter have summed up, each for itself.
template <class T>
inline void add_up(T* totals, int64_t count, const T* partials, const int64_t* at, int64_t first, int64_t last) {
    Buffer<double> kept(count);
    double* const sum = kept.data;
    for (int64_t i = 0; i < count; i++) sum[i] = 0;
    for (int64_t program = first; program < last; program++)
        for (int64_t i = 0; i < count; i++) sum[i] += partials[at[program] + i];
    for (int64_t i = 0; i < count; i++) totals[i] = sum[i];
}
