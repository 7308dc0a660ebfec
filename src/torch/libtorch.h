// What of libtorch this project uses. <torch/torch.h>, with its layers and optimizers, takes twice as long to compile.
#pragma once

#include <torch/types.h>  // IWYU pragma: export
#include <torch/utils.h>  // IWYU pragma: export
