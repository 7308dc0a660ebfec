// A reference beside a backbone that someone else quantized: before rounding, methods like AWQ move factors between a norm
// and the linears behind it, and between linears that follow each other. Weights can only be compared in one basis.
#pragma once

#include "model/weights.h"

namespace spear {

/// `reference`, computing what it did, in the basis of `backbone`: with the backbone's norm gains where they differ (the
/// columns behind them take the quotient), and with the factors that its v_proj and up_proj rows have against the
/// reference's (o_proj's and down_proj's columns take the inverse), which are estimated by least squares. What needs no
/// factor is shared with `reference`. Both have one shape.
ModelWeights in_basis_of(const ModelWeights& reference, const ModelWeights& backbone);

}  // namespace spear
