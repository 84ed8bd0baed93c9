"""What a TorchScript archive may contain. Everything that is not listed is refused and named.

The operators are those of neural networks: they map tensors to tensors, touch no file, process, network, device
state or foreign memory. A missing harmless operator costs a user one refusal that names it; grow the list by review,
never by pattern. `out=` overloads cannot slip in: an operator is written by name, and its graph is checked after load.
"""

import re

_ARITHMETIC = """
    abs abs_ acos add add_ addbmm addcdiv addcdiv_ addcmul addcmul_ addmm addmv addr angle asin atan atan2 baddbmm
    bmm cdist ceil ceil_ clamp clamp_ clamp_max clamp_max_ clamp_min clamp_min_ clip complex conj cos cosh cross
    cumprod cumsum deg2rad div div_ divide dot einsum erf erfc erfinv exp exp_ exp2 expm1 exponential_ fft_fft
    fft_fft2 fft_fftn fft_fftshift fft_ifft fft_ifft2 fft_ifftn fft_ifftshift fft_irfft fft_irfft2 fft_irfftn
    fft_rfft fft_rfft2 fft_rfftn float_power floor floor_ floor_divide fmod frac imag inverse lerp lerp_ log log10
    log1p log2 logaddexp logit logsumexp matmul maximum minimum mm mul mul_ multiply mv nan_to_num nan_to_num_ neg
    neg_ negative outer polar positive pow pow_ real reciprocal remainder resolve_conj round round_ rsqrt rsub sgn
    sign sin sinh sqrt sqrt_ square sub sub_ subtract tan tanh tanh_ tensordot true_divide trunc vdot
    view_as_complex view_as_real xlogy
"""

_REDUCTION = """
    all amax amin any argmax argmin argsort bincount bucketize cosine_similarity count_nonzero cummax cummin
    kthvalue linalg_matrix_norm linalg_norm linalg_vector_norm logcumsumexp max mean median min nanmean nansum norm
    prod searchsorted sort std std_mean sum topk _unique2 unique_dim var var_mean
"""

_COMPARISON = """
    __and__ __contains__ __is__ __isnot__ __not__ __or__ __xor__ bitwise_and bitwise_not bitwise_or bitwise_xor eq
    ge greater gt isfinite isinf isnan le less logical_and logical_not logical_or logical_xor lt ne not_equal where
"""

_SHAPE = """
    adjoint broadcast_tensors broadcast_to cat chunk clone col2im column_stack concat concatenate contiguous detach
    detach_ diag diagonal diff dim dsplit expand expand_as flatten flip fliplr gather hsplit hstack im2col index
    index_add index_add_ index_copy index_copy_ index_fill index_fill_ index_put index_put_ index_select
    is_contiguous is_floating_point is_same_size masked_fill masked_fill_ masked_scatter masked_select meshgrid
    moveaxis movedim narrow nonzero numel one_hot permute pixel_shuffle pixel_unshuffle ravel repeat
    repeat_interleave reshape reshape_as roll rot90 scatter scatter_ scatter_add scatter_add_ scatter_reduce select
    select_scatter size slice slice_scatter split split_with_sizes squeeze squeeze_ stack stride swapaxes swapdims t
    take take_along_dim tensor_split tile transpose tril tril_indices triu triu_indices type_as unbind unflatten
    unfold unsafe_chunk unsafe_split unsqueeze unsqueeze_ view view_as vsplit vstack
"""

_CREATION = """
    arange as_tensor bernoulli bernoulli_ copy_ cpu empty empty_like eye fill_ full full_like linspace multinomial
    new_empty new_full new_ones new_zeros normal normal_ ones ones_like rand rand_like randint randn randn_like
    randperm scalar_tensor tensor to uniform_ zero_ zeros zeros_like
"""

_LAYERS = """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d affine_grid_generator alpha_dropout alpha_dropout_ avg_pool1d avg_pool2d avg_pool3d
    batch_norm bilinear binary_cross_entropy binary_cross_entropy_with_logits channel_shuffle constant_pad_nd conv1d
    conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d _convolution convolution _convolution_mode
    cross_entropy_loss dropout dropout_ embedding embedding_bag feature_alpha_dropout feature_alpha_dropout_
    feature_dropout feature_dropout_ grid_sampler group_norm gru gru_cell huber_loss instance_norm kl_div l1_loss
    layer_norm linear lstm lstm_cell max_pool1d max_pool2d max_pool2d_with_indices max_pool3d max_unpool2d
    max_unpool3d mse_loss native_batch_norm native_group_norm native_layer_norm _native_multi_head_attention
    _nested_tensor_from_mask _nested_tensor_from_mask_left_aligned nll_loss nll_loss_nd _pack_padded_sequence pad
    _pad_packed_sequence pairwise_distance reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d
    replication_pad3d rms_norm rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell scaled_dot_product_attention
    smooth_l1_loss to_padded_tensor _transformer_encoder_layer_fwd upsample_bicubic2d _upsample_bicubic2d_aa
    upsample_bilinear2d _upsample_bilinear2d_aa _upsample_lanczos2d_aa upsample_linear1d upsample_nearest1d
    upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d upsample_trilinear3d _weight_norm
"""

_ACTIVATION = """
    celu celu_ elu elu_ gelu glu hardshrink hardsigmoid hardsigmoid_ hardswish hardswish_ hardtanh hardtanh_
    leaky_relu leaky_relu_ log_sigmoid log_softmax mish mish_ prelu relu relu6 relu6_ relu_ rrelu rrelu_
    rrelu_with_noise selu selu_ sigmoid sigmoid_ silu silu_ softmax softplus softshrink threshold threshold_
"""

# Python's own values: numbers, strings, lists, dicts.
_LANGUAGE = """
    Bool Delete Float FloatImplicit Int IntImplicit ScalarImplicit append clear copy count __derive_index device
    dict endswith extend find floordiv format get __getitem__ index insert is_autocast_enabled is_grad_enabled item
    items join keys len list lower __lshift__ lstrip mathremainder ord percentFormat pop __range_length remove
    replace reverse __rshift__ rstrip _set_item setdefault sorted split startswith str strip _unwrap_optional update
    upper values warn
"""


def words(*texts: str) -> frozenset[str]:
    """The words of the texts, which are easier to read and to compare than quoted lists."""
    return frozenset(word for text in texts for word in text.split())


ATEN_OPERATORS = words(_ARITHMETIC, _REDUCTION, _COMPARISON, _SHAPE, _CREATION, _LAYERS, _ACTIVATION, _LANGUAGE)

PRIM_OPERATORS = words(
    "NumToTensor RaiseException abs data device dtype is_cuda is_nested layout max min requires_grad type"
)

# Only in graphs: in source text they are Python syntax (`if`, `x.y`, `(a, b)`, `isinstance(...)`).
_PRIM_SYNTAX = words("""
    CallFunction CallMethod Constant DictConstruct EnumName EnumValue GetAttr If ListConstruct ListUnpack Loop Return
    CreateObject Enter Exit SetAttr TupleConstruct TupleIndex TupleSlice TupleUnpack Uninitialized isinstance tolist
    unchecked_cast
    """)

NODE_KINDS = frozenset(
    {"aten::set_grad_enabled"}
    | {f"aten::{name}" for name in ATEN_OPERATORS}
    | {f"prim::{name}" for name in PRIM_OPERATORS | _PRIM_SYNTAX}
)

# The one class that is no module: `with torch.no_grad():` compiles to it. Only its methods may switch gradients.
CONTEXT_CLASS = re.compile(r"__torch__\.torch\.autograd\.grad_mode\.(___torch_mangle_[0-9]+\.)?no_grad")
CONTEXT_OPERATOR = "torch.set_grad_enabled"

# What `torch.X` and `ops.N.X` in source text may resolve to.
DOTTED_NAMES = frozenset({f"torch.{name}" for name in ATEN_OPERATORS} | {f"ops.prim.{name}" for name in PRIM_OPERATORS})

# Names that mean something without being assigned first.
VALUE_NAMES = words(
    "annotate bool float getattr inf int isinstance list nan range sorted str unchecked_cast uninitialized"
)
TYPE_NAMES = words("""
    Any AnyEnumType Device Dict Final Layout List NoneType Optional Scalar Tensor Tuple Union bool complex dict float
    int list number str tuple
    """)
ROOT_NAMES = frozenset({"torch", "ops", "__torch__", "CONSTANTS"})
BASE_CLASSES = frozenset({"Module", "NamedTuple", "Enum"})
FORBIDDEN_METHODS = frozenset({"__setstate__", "__getstate__", "__reduce__", "__reduce_ex__", "__new__", "__del__"})

STORAGE_BYTES = {
    "BFloat16Storage": 2,
    "BoolStorage": 1,
    "ByteStorage": 1,
    "CharStorage": 1,
    "ComplexDoubleStorage": 16,
    "ComplexFloatStorage": 8,
    "DoubleStorage": 8,
    "FloatStorage": 4,
    "HalfStorage": 2,
    "IntStorage": 4,
    "LongStorage": 8,
    "ShortStorage": 2,
}
