#include "ops/ref/ref_ops.h"

#include <algorithm>
#include <cmath>

namespace spear {
namespace ref {

RefMatrix dequantize(const LinearWeight& weight) {
  const Shape shape = shape_of(weight);
  RefMatrix out(shape.at(0), shape.at(1));
  const auto floats = spear::dequantize(weight);
  out.values.assign(floats.begin(), floats.end());
  return out;
}

RefMatrix linear(const RefMatrix& x, const RefMatrix& w) {
  RefMatrix y(x.rows, w.rows);
  for (std::int64_t i = 0; i < x.rows; ++i) {
    for (std::int64_t n = 0; n < w.rows; ++n) {
      double sum = 0;
      for (std::int64_t k = 0; k < w.cols; ++k) sum += x.at(i, k) * w.at(n, k);
      y.at(i, n) = sum;
    }
  }
  return y;
}

RefMatrix rms_norm(const RefMatrix& x, std::span<const float> gain, double eps) {
  RefMatrix y(x.rows, x.cols);
  for (std::int64_t i = 0; i < x.rows; ++i) {
    double squares = 0;
    for (std::int64_t j = 0; j < x.cols; ++j) squares += x.at(i, j) * x.at(i, j);
    const double scale = 1.0 / std::sqrt(squares / static_cast<double>(x.cols) + eps);
    for (std::int64_t j = 0; j < x.cols; ++j) y.at(i, j) = x.at(i, j) * scale * gain[static_cast<std::size_t>(j)];
  }
  return y;
}

void rotate(RefMatrix& x, std::int64_t head_dim, std::span<const double> frequencies, std::int64_t first,
            std::int64_t length) {
  const std::int64_t half = head_dim / 2;
  for (std::int64_t row = 0; row < x.rows; ++row) {
    const auto position = static_cast<double>(first + row % length);
    for (std::int64_t head = 0; head < x.cols; head += head_dim) {
      for (std::int64_t i = 0; i < half; ++i) {
        const double angle = position * frequencies[static_cast<std::size_t>(i)];
        const double a = x.at(row, head + i), b = x.at(row, head + half + i);
        x.at(row, head + i) = a * std::cos(angle) - b * std::sin(angle);
        x.at(row, head + half + i) = b * std::cos(angle) + a * std::sin(angle);
      }
    }
  }
}

RefMatrix attention(const RefMatrix& q, const RefMatrix& k, const RefMatrix& v, std::int64_t length,
                    std::int64_t head_dim, double scale, std::int64_t window) {
  RefMatrix out(q.rows, q.cols);
  const std::int64_t heads = q.cols / head_dim;
  const std::int64_t group = heads / (k.cols / head_dim);
  std::vector<double> p(static_cast<std::size_t>(length));
  for (std::int64_t row = 0; row < q.rows; ++row) {
    const std::int64_t begin = row / length * length;
    const std::int64_t first = window > 0 ? std::max(begin, row - window + 1) : begin;
    for (std::int64_t head = 0; head < heads; ++head) {
      const std::int64_t query = head * head_dim, key = head / group * head_dim;
      double largest = -INFINITY, sum = 0;
      for (std::int64_t t = first; t <= row; ++t) {
        double score = 0;
        for (std::int64_t i = 0; i < head_dim; ++i) score += q.at(row, query + i) * k.at(t, key + i);
        p[static_cast<std::size_t>(t - first)] = score * scale;
        largest = std::max(largest, p[static_cast<std::size_t>(t - first)]);
      }
      for (std::int64_t t = first; t <= row; ++t) {
        double& weight = p[static_cast<std::size_t>(t - first)];
        weight = std::exp(weight - largest);
        sum += weight;
      }
      for (std::int64_t t = first; t <= row; ++t) {
        const double weight = p[static_cast<std::size_t>(t - first)] / sum;
        for (std::int64_t i = 0; i < head_dim; ++i) out.at(row, query + i) += weight * v.at(t, key + i);
      }
    }
  }
  return out;
}

RefMatrix gated_act(const RefMatrix& gate, const RefMatrix& up, HiddenAct act) {
  RefMatrix out(gate.rows, gate.cols);
  for (std::size_t i = 0; i < out.values.size(); ++i) {
    const double x = gate.values[i];
    const double y = act == HiddenAct::silu
                         ? x / (1.0 + std::exp(-x))
                         : 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    out.values[i] = y * up.values[i];
  }
  return out;
}

void add_correction(const Compensator& compensator, const RefMatrix& x, RefMatrix& y) {
  std::vector<float> input(static_cast<std::size_t>(x.cols)), z(static_cast<std::size_t>(compensator.a->rows));
  std::vector<float> correction(static_cast<std::size_t>(y.cols));
  for (std::int64_t i = 0; i < x.rows; ++i) {
    for (std::int64_t k = 0; k < x.cols; ++k) input[static_cast<std::size_t>(k)] = static_cast<float>(x.at(i, k));
    std::fill(correction.begin(), correction.end(), 0.0F);
    project(*compensator.a, input, z);
    spear::add_correction(compensator, z, correction);
    for (std::int64_t n = 0; n < y.cols; ++n) y.at(i, n) += correction[static_cast<std::size_t>(n)];
  }
}

}  // namespace ref

RefMatrix RefOps::linear(const RefMatrix& x, ModuleId id) {
  const LinearModule& module = weights_.linear(id);
  RefMatrix y = ref::linear(x, ref::dequantize(module.weight));
  if (compensators_ && module.compensator) ref::add_correction(*module.compensator, x, y);
  if (!module.bias.empty()) {
    const auto bias = module.bias.to_floats();
    for (std::int64_t i = 0; i < y.rows; ++i) {
      for (std::int64_t n = 0; n < y.cols; ++n) y.at(i, n) += bias[static_cast<std::size_t>(n)];
    }
  }
  return y;
}

/// Every row through one of StreamRotation's two ways.
RefMatrix RefOps::rotated(const RefMatrix& x, void (StreamRotation::*way)(const float*, float*) const) const {
  const StreamRotation rotation(x.cols);
  RefMatrix out(x.rows, x.cols);
  std::vector<float> in(static_cast<std::size_t>(x.cols)), row(in.size());
  for (std::int64_t i = 0; i < x.rows; ++i) {
    for (std::int64_t j = 0; j < x.cols; ++j) in[static_cast<std::size_t>(j)] = static_cast<float>(x.at(i, j));
    (rotation.*way)(in.data(), row.data());
    for (std::int64_t j = 0; j < x.cols; ++j) out.at(i, j) = row[static_cast<std::size_t>(j)];
  }
  return out;
}

RefMatrix RefOps::normalize(const RefMatrix& x, NormId gain) {
  return ref::rms_norm(x, weights_.gain(gain).to_floats(), weights_.config.rms_norm_eps);
}

Stream<RefOps> RefOps::embed(const TokenBatch& batch, NormId gain) {
  const auto table = weights_.embed_tokens.to_floats();
  const std::int64_t hidden = weights_.config.hidden_size;
  RefMatrix x(static_cast<std::int64_t>(batch.tokens.size()), hidden);
  for (std::int64_t i = 0; i < x.rows; ++i) {
    const std::int64_t token = batch.tokens[static_cast<std::size_t>(i)];
    for (std::int64_t j = 0; j < hidden; ++j) {
      x.at(i, j) = table[static_cast<std::size_t>(token * hidden + j)] * weights_.config.embedding_scale;
    }
  }
  if (weights_.config.rotated_stream) x = rotated(x, &StreamRotation::into_stream);
  auto normed = normalize(x, gain);
  return {std::move(x), std::move(normed)};
}

RefMatrix RefOps::attention(std::int64_t layer, RefMatrix q, RefMatrix k, RefMatrix v, TokenBatch& batch) {
  const ModelConfig& config = weights_.config;
  const auto prepare = [&](RefMatrix& x, NormKind kind) {
    if (config.qk_norm) {
      RefMatrix heads(x.rows * x.cols / config.head_dim, config.head_dim);
      heads.values = std::move(x.values);
      x.values = normalize(heads, NormId::of(layer, kind)).values;
    }
    ref::rotate(x, config.head_dim, config.rope_frequencies(config.is_local(layer)), 0, batch.length);
  };
  prepare(q, NormKind::q);
  prepare(k, NormKind::k);
  return ref::attention(q, k, v, batch.length, config.head_dim, config.attention_scale(), config.window(layer));
}

Stream<RefOps> RefOps::linear_tail(RefMatrix y, const Tail& tail, Stream<RefOps> stream) {
  RefMatrix out = linear(y, tail.linear);
  if (tail.output) out = normalize(out, *tail.output);
  for (std::size_t i = 0; i < out.values.size(); ++i) stream.residual.values[i] += out.values[i];
  const auto& residual = stream.residual;
  stream.normed = normalize(tail.back ? rotated(residual, &StreamRotation::out_of_stream) : residual, tail.next);
  return stream;
}

}  // namespace spear
