"""What a TorchScript archive may contain. Everything that is not listed is refused and named.

The operators are those of neural networks: they map tensors to tensors, touch no file, process, network, device
state or foreign memory. A missing harmless operator costs a user one refusal that names it; grow the list by review,
never by pattern. `out=` overloads cannot slip in: an operator is written by name, and its graph is checked after load.
"""

_ARITHMETIC = """
    abs abs_ add add_ addcdiv addcmul addmm baddbmm bmm ceil ceil_ clamp clamp_ clamp_max clamp_max_ clamp_min
    clamp_min_ clip cos cross cumprod cumsum deg2rad div div_ divide dot einsum erf exp exp_ expm1 exponential_ floor
    floor_ floor_divide fmod frac inverse lerp log log10 log1p log2 logaddexp logit logsumexp matmul maximum minimum mm
    mul mul_ multiply mv neg neg_ negative outer pow pow_ reciprocal remainder round round_ rsqrt rsub sign sin sqrt
    sqrt_ square sub sub_ subtract tan tanh tanh_ true_divide trunc
"""

_REDUCTION = """
    all amax amin any argmax argmin argsort bincount cosine_similarity count_nonzero cummax kthvalue
    linalg_matrix_norm linalg_norm linalg_vector_norm max mean median min norm prod sort std std_mean sum topk var
    var_mean
"""

_COMPARISON = """
    __and__ __contains__ __is__ __isnot__ __not__ __or__ __xor__ bitwise_and bitwise_not bitwise_or bitwise_xor eq
    ge greater gt isfinite isinf isnan le less logical_and logical_not logical_or logical_xor lt ne not_equal where
"""

_SHAPE = """
    adjoint broadcast_tensors broadcast_to cat chunk clone col2im column_stack concat concatenate contiguous detach
    detach_ diag diagonal diff dim dsplit expand expand_as flatten flip fliplr gather hsplit hstack im2col index
    index_add index_add_ index_copy index_fill index_put index_put_ index_select is_contiguous is_floating_point
    is_same_size masked_fill masked_fill_ masked_scatter masked_select meshgrid moveaxis movedim narrow nonzero numel
    one_hot permute pixel_shuffle pixel_unshuffle ravel repeat repeat_interleave reshape reshape_as roll rot90
    scatter scatter_ scatter_add scatter_add_ select size slice split split_with_sizes squeeze squeeze_ stack stride
    swapaxes swapdims t take tensor_split tile transpose tril triu type_as unbind unflatten unfold unsqueeze
    unsqueeze_ view view_as vsplit vstack
"""

_CREATION = """
    arange as_tensor bernoulli bernoulli_ copy_ empty empty_like eye fill_ full full_like linspace multinomial new_empty
    new_full new_ones new_zeros normal normal_ ones ones_like rand rand_like randint randn randn_like randperm
    scalar_tensor tensor to uniform_ zero_ zeros zeros_like
"""

_LAYERS = """
    _convolution _convolution_mode adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d affine_grid_generator alpha_dropout alpha_dropout_ avg_pool1d avg_pool2d
    avg_pool3d batch_norm bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
    convolution dropout dropout_ embedding embedding_bag feature_alpha_dropout feature_dropout feature_dropout_
    grid_sampler group_norm gru gru_cell instance_norm layer_norm linear lstm lstm_cell max_pool1d
    max_pool2d max_pool2d_with_indices max_pool3d max_unpool2d _native_multi_head_attention native_batch_norm
    native_group_norm native_layer_norm _pack_padded_sequence pad pairwise_distance reflection_pad1d
    reflection_pad2d replication_pad1d replication_pad2d replication_pad3d rms_norm rnn_relu rnn_tanh
    _nested_tensor_from_mask _nested_tensor_from_mask_left_aligned to_padded_tensor
    scaled_dot_product_attention _transformer_encoder_layer_fwd upsample_bicubic2d upsample_bilinear2d
    upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d
    _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_lanczos2d_aa _upsample_nearest_exact1d
    _upsample_nearest_exact2d _upsample_nearest_exact3d constant_pad_nd
"""

_ACTIVATION = """
    celu celu_ elu elu_ gelu glu hardshrink hardsigmoid hardsigmoid_ hardswish hardswish_ hardtanh hardtanh_
    leaky_relu leaky_relu_ log_sigmoid log_softmax mish mish_ prelu relu relu6 relu6_ relu_ rrelu rrelu_
    rrelu_with_noise selu selu_ sigmoid sigmoid_ silu silu_ softmax softplus softshrink threshold threshold_
"""

# Python's own values: numbers, strings, lists, dicts.
_LANGUAGE = """
    Bool Delete Float FloatImplicit Int IntImplicit ScalarImplicit __getitem__ __range_length _set_item _unwrap_optional
    append clear copy count device dict extend find floordiv format get insert items index item join keys len list
    lower ord pop remove replace reverse setdefault split startswith endswith str strip upper values warn
    __derive_index is_autocast_enabled is_grad_enabled mathremainder
"""


def _words(*texts: str) -> frozenset[str]:
    return frozenset(word for text in texts for word in text.split())


ATEN_OPERATORS = _words(_ARITHMETIC, _REDUCTION, _COMPARISON, _SHAPE, _CREATION, _LAYERS, _ACTIVATION, _LANGUAGE)

PRIM_OPERATORS = _words(
    "NumToTensor RaiseException abs data device dtype is_cuda is_nested layout max min requires_grad type"
)

# Only in graphs: in source text they are Python syntax (`if`, `x.y`, `(a, b)`, `isinstance(...)`).
_PRIM_SYNTAX = _words("""
    CallFunction CallMethod Constant DictConstruct EnumName EnumValue GetAttr If ListConstruct ListUnpack Loop Return
    SetAttr TupleConstruct TupleIndex TupleSlice TupleUnpack Uninitialized isinstance tolist unchecked_cast
    """)

NODE_KINDS = frozenset(
    {f"aten::{name}" for name in ATEN_OPERATORS} | {f"prim::{name}" for name in PRIM_OPERATORS | _PRIM_SYNTAX}
)

# What `torch.X` and `ops.N.X` in source text may resolve to.
DOTTED_NAMES = frozenset({f"torch.{name}" for name in ATEN_OPERATORS} | {f"ops.prim.{name}" for name in PRIM_OPERATORS})

# Names that mean something without being assigned first.
VALUE_NAMES = _words("annotate bool float getattr inf int isinstance list nan range str unchecked_cast uninitialized")
TYPE_NAMES = _words("""
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
