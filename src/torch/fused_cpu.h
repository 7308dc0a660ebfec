// One-pass row kernels behind fused_ops.h. Rows are contiguous; T is float or bf16 bits (std::uint16_t).
#pragma once

#include <cstdint>

namespace spear::fused {

template <class T>
void rms_norm_forward(std::int64_t rows, std::int64_t n, float eps, const float* x, const float* gain, T* out, float* inverse_rms);

/// dgain may be null; otherwise it is added to.
template <class T>
void rms_norm_backward(std::int64_t rows, std::int64_t n, const float* x, const float* gain, const float* inverse_rms,
                       const T* dy, float* dx, float* dgain);

template <class T>
void swiglu_forward(std::int64_t count, const T* gate, const T* up, T* out);
template <class T>
void swiglu_backward(std::int64_t count, const T* gate, const T* up, const T* dy, T* dgate, T* dup);
template <class T>
void geglu_forward(std::int64_t count, const T* gate, const T* up, T* out);
template <class T>
void geglu_backward(std::int64_t count, const T* gate, const T* up, const T* dy, T* dgate, T* dup);

/// out = y ⊙ factor.
template <class T>
void scale_forward(std::int64_t rows, std::int64_t n, const T* y, const float* factor, T* out);
/// dy = dout ⊙ factor; dfactor += Σ_rows dout ⊙ y.
template <class T>
void scale_backward(std::int64_t rows, std::int64_t n, const T* y, const float* factor, const T* dout, T* dy, float* dfactor);

/// x [length, heads, dim] of one sequence -> out [heads, length, dim]; `inverse` maps back and rotates by −angle.
template <class T>
void rotate(std::int64_t length, std::int64_t heads, std::int64_t dim, const float* cos, const float* sin, bool inverse,
            const T* x, T* out);

/// KL of one row; student becomes softmax(student) − softmax(teacher).
double kl_row(std::int64_t vocab, float* student, const float* teacher);

}  // namespace spear::fused
