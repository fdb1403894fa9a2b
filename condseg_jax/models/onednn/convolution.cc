// Convolutions by oneDNN as handlers of XLA's foreign function interface.
//
// All are of stride 1, zero-padded to the same size, channels-last: image [B, *space, C] in float32
// or bfloat16, kernel [*window, C, O] in float32. Sums are in float32. Leading axes are those that
// jax.vmap added; an operand that does not vary along them has the length 1 there.

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using dnnl::memory;
using Dims = memory::dims;
using Array = ffi::AnyBuffer;
using Result = ffi::Result<Array>;
using Type = memory::data_type;

namespace {

enum class Kind { kForward, kImageGradient, kKernelGradient };

const dnnl::engine& Cpu() {
  static const auto& engine = *new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

// [*first, *space] in the order of oneDNN, whatever the order in memory.
memory::desc Describe(Dims first, const Dims& space, Type type, memory::format_tag tag) {
  first.insert(first.end(), space.begin(), space.end());
  return {first, type, tag};
}

// One convolution of fixed shapes, ready to run.
struct Program {
  Kind kind;
  dnnl::primitive convolution, reorder;
  memory::desc image, output, kernel, inner_kernel, scratch;
};

Program Prepare(Kind kind, Type type, int64_t batch, int64_t channels, int64_t features,
                const Dims& space, const Dims& window) {
  using tag = memory::format_tag;
  const bool is_3d = space.size() == 3;
  const auto last = is_3d ? tag::ndhwc : tag::nhwc;
  Program p{.kind = kind};
  p.image = Describe({batch, channels}, space, type, last);
  p.output = Describe({batch, features}, space, type, last);
  p.kernel = Describe({features, channels}, window, Type::f32, is_3d ? tag::dhwio : tag::hwio);
  const auto chosen = Describe({features, channels}, window, type, tag::any);

  const Dims ones(space.size(), 1), zeros(space.size(), 0);
  Dims half;
  for (auto taps : window) half.push_back(taps / 2);
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const auto direct = dnnl::algorithm::convolution_direct;
  const dnnl::convolution_forward::primitive_desc forward(
      Cpu(), dnnl::prop_kind::forward_training, direct, p.image, chosen, p.output, ones, zeros,
      half, half, attributes);
  const auto use = [&p](const auto& chosen_way, const memory::desc& kernel, dnnl::primitive run) {
    p.convolution = run;
    p.inner_kernel = kernel;
    p.scratch = chosen_way.scratchpad_desc();
  };
  if (kind == Kind::kForward) {
    use(forward, forward.weights_desc(), dnnl::convolution_forward(forward));
  } else if (kind == Kind::kImageGradient) {
    const dnnl::convolution_backward_data::primitive_desc way(
        Cpu(), direct, p.image, chosen, p.output, ones, zeros, half, half, forward, attributes);
    use(way, way.weights_desc(), dnnl::convolution_backward_data(way));
  } else {
    const auto summed = Describe({features, channels}, window, Type::f32, tag::any);
    const dnnl::convolution_backward_weights::primitive_desc way(
        Cpu(), direct, p.image, summed, p.output, ones, zeros, half, half, forward, attributes);
    use(way, way.diff_weights_desc(), dnnl::convolution_backward_weights(way));
  }
  // oneDNN computes with a kernel in an order and type of its own; kernels are small.
  p.reorder = kind == Kind::kKernelGradient
                  ? dnnl::reorder({Cpu(), p.inner_kernel, Cpu(), p.kernel})
                  : dnnl::reorder({Cpu(), p.kernel, Cpu(), p.inner_kernel});
  return p;
}

const Program& Prepared(Kind kind, Type type, int64_t batch, int64_t channels, int64_t features,
                        const Dims& space, const Dims& window) {
  static auto& programs = *new std::map<Dims, Program>();
  Dims key{static_cast<int64_t>(kind), static_cast<int64_t>(type), batch, channels, features};
  key.insert(key.end(), space.begin(), space.end());
  key.insert(key.end(), window.begin(), window.end());
  auto found = programs.find(key);
  if (found == programs.end())
    found = programs.emplace(
        key, Prepare(kind, type, batch, channels, features, space, window)).first;
  return found->second;
}

void Run(const Program& p, char* image, char* kernel, char* output) {
  static auto& room = *new std::vector<char>();
  constexpr size_t kLine = 64;
  const size_t kernel_bytes = (p.inner_kernel.get_size() + kLine - 1) / kLine * kLine;
  const size_t wanted = kernel_bytes + p.scratch.get_size() + kLine;
  if (room.size() < wanted) room.resize(wanted);
  char* start = room.data() + (kLine - reinterpret_cast<uintptr_t>(room.data()) % kLine) % kLine;

  dnnl::stream stream(Cpu());
  memory given(p.kernel, Cpu(), kernel), inner(p.inner_kernel, Cpu(), start);
  memory x(p.image, Cpu(), image), y(p.output, Cpu(), output);
  memory scratch(p.scratch, Cpu(), start + kernel_bytes);
  auto run = [&](int x_name, int kernel_name, int y_name) {
    p.convolution.execute(stream, {{x_name, x}, {kernel_name, inner}, {y_name, y},
                                   {DNNL_ARG_SCRATCHPAD, scratch}});
  };
  auto reorder = [&](memory& from, memory& to) {
    p.reorder.execute(stream, {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}});
  };
  switch (p.kind) {
    case Kind::kForward:
      reorder(given, inner);
      run(DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST);
      break;
    case Kind::kImageGradient:
      reorder(given, inner);
      run(DNNL_ARG_DIFF_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DIFF_DST);
      break;
    case Kind::kKernelGradient:
      run(DNNL_ARG_SRC, DNNL_ARG_DIFF_WEIGHTS, DNNL_ARG_DIFF_DST);
      reorder(inner, given);
      break;
  }
  stream.wait();
}

int64_t Product(const int64_t* begin, const int64_t* end) {
  int64_t product = 1;
  for (; begin != end; ++begin) product *= *begin;
  return product;
}

struct Operand {
  char* data;
  ffi::Span<const int64_t> dims;
  ffi::DataType type;
};

// `rank` is that of an image without the axes of vmap: 5 in 3-D, 4 in 2-D.
ffi::Error Convolve(Kind kind, int64_t rank, Operand image, Operand kernel, Operand output) {
  const bool half = image.type == ffi::BF16;
  if (kernel.type != ffi::F32 || image.type != output.type || !half && image.type != ffi::F32)
    return ffi::Error::InvalidArgument("kernels are float32, images float32 or bfloat16");
  const auto copies = [&](const Operand& a) {
    return Product(a.dims.begin(), a.dims.end() - rank);
  };
  const int64_t* of_image = image.dims.end() - rank;
  const int64_t* of_kernel = kernel.dims.end() - rank;
  const Dims space(of_image + 1, of_image + rank - 1), window(of_kernel, of_kernel + rank - 2);
  const int64_t channels = of_image[rank - 1], features = of_kernel[rank - 1];
  const int64_t images = copies(image), kernels = copies(kernel), outputs = copies(output);
  int64_t batch = of_image[0], runs = std::max({images, kernels, outputs});
  const int64_t voxels = batch * Product(space.data(), space.data() + space.size());
  if (kernels == 1 && images == outputs && kind != Kind::kKernelGradient) {
    batch *= runs;
    runs = 1;
  }
  // Each call uses all cores; two at once would only wait for each other.
  static auto& one_at_a_time = *new std::mutex();
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  try {
    const Program& program = Prepared(kind, half ? Type::bf16 : Type::f32, batch, channels,
                                      features, space, window);
    const int64_t taps = Product(window.data(), window.data() + window.size());
    const int64_t bytes = half ? 2 : 4;
    for (int64_t i = 0; i < runs; ++i)
      Run(program, image.data + (images > 1 ? i * voxels * channels * bytes : 0),
          kernel.data + (kernels > 1 ? i * taps * channels * features * 4 : 0),
          output.data + (outputs > 1 ? i * voxels * features * bytes : 0));
  } catch (const dnnl::error& error) {
    return ffi::Error::Internal(error.what());
  }
  return ffi::Error::Success();
}

Operand Of(Array& array) {
  return {static_cast<char*>(array.untyped_data()), array.dimensions(), array.element_type()};
}
Operand Of(Result& array) { return Of(*array); }

ffi::Error Forward(Array image, Array kernel, Result output, int64_t rank) {
  return Convolve(Kind::kForward, rank, Of(image), Of(kernel), Of(output));
}

ffi::Error ImageGradient(Array output, Array kernel, Result image, int64_t rank) {
  return Convolve(Kind::kImageGradient, rank, Of(image), Of(kernel), Of(output));
}

ffi::Error KernelGradient(Array image, Array output, Result kernel, int64_t rank) {
  return Convolve(Kind::kKernelGradient, rank, Of(image), Of(kernel), Of(output));
}

#define BINDING \
  ffi::Ffi::Bind().Arg<Array>().Arg<Array>().Ret<Array>().Attr<int64_t>("rank")

}  // namespace

// Whether this processor multiplies bfloat16 faster than float32.
extern "C" bool condseg_fast_bfloat16() {
  const auto has = [](dnnl::cpu_isa isa) {
    const auto mine = static_cast<int>(dnnl::get_effective_cpu_isa());
    return (mine & static_cast<int>(isa)) == static_cast<int>(isa);
  };
  return has(dnnl::cpu_isa::avx512_core_bf16) || has(dnnl::cpu_isa::avx512_core_amx);
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(condseg_convolution, Forward, BINDING);
XLA_FFI_DEFINE_HANDLER_SYMBOL(condseg_image_gradient, ImageGradient, BINDING);
XLA_FFI_DEFINE_HANDLER_SYMBOL(condseg_kernel_gradient, KernelGradient, BINDING);
