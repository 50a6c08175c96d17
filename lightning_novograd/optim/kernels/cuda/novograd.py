"""The kernels of the fused CUDA worker, in Triton.

A program works on one chunk of one layer, or on one layer. `table` holds the layers' addresses (rows: gradient,
parameter, exp_avg, exp_avg_sq, max_exp_avg_sq), `factors` what a layer's gradient is multiplied with and, in its second
row, the layer's step size. All arithmetic is float32; `ELEMENT` is how gradients, parameters and moments are stored.
Loads and stores are 16 bytes wide in whole chunks whose addresses allow it. `found_inf`, if nonzero, stops all of them.
"""

# triton.jit reads these functions as source: annotations are for it, not for a type checker.
import triton
import triton.language as tl


@triton.jit
def _address(table, row: tl.constexpr, num_layers, layer, ELEMENT: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = tl.load(table + row * num_layers + layer).to(tl.pointer_type(ELEMENT))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)  # what lets a thread load 16 bytes at once
    return pointer


@triton.jit
def _is_aligned(table, ROWS: tl.constexpr, num_layers, layer):
    bits = tl.load(table + layer)
    for row in tl.static_range(1, ROWS):
        bits |= tl.load(table + row * num_layers + layer)
    return bits % 16 == 0


@triton.jit
def _load(pointer, lanes, size, WHOLE: tl.constexpr):
    values = tl.load(pointer + lanes) if WHOLE else tl.load(pointer + lanes, mask=lanes < size, other=0.0)
    return values.to(tl.float32)


@triton.jit
def _store(pointer, lanes, size, values, ELEMENT: tl.constexpr, WHOLE: tl.constexpr):
    if WHOLE:
        tl.store(pointer + lanes, values.to(ELEMENT))
    else:
        tl.store(pointer + lanes, values.to(ELEMENT), mask=lanes < size)


@triton.jit
def _unscale(grad_scale):
    return 1.0 if grad_scale is None else tl.div_rn(1.0, tl.load(grad_scale).to(tl.float32))


@triton.jit
def _chunk_of_layer(sizes, first_chunks, layer_of_chunk, CHUNK: tl.constexpr):
    """The program's layer, its first element there (64 bits: layers may be huge) and how many it has to do."""
    chunk = tl.program_id(0).to(tl.int64)
    layer = tl.load(layer_of_chunk + chunk)
    start = (chunk - tl.load(first_chunks + layer)) * CHUNK
    size = tl.minimum(tl.load(sizes + layer) - start, CHUNK).to(tl.int32)
    return layer, start, size


@triton.jit
def _grad_squares(table, num_layers, layer, start, size, unscale, ELEMENT, CHUNK, BLOCK, WHOLE: tl.constexpr):
    grad = _address(table, 0, num_layers, layer, ELEMENT, WHOLE) + start
    squares = tl.zeros([BLOCK], tl.float32)
    for offset in range(0, CHUNK, BLOCK):
        g = _load(grad, offset + tl.arange(0, BLOCK), size, WHOLE) * unscale
        squares += g * g
    return tl.sum(squares, axis=0)


@triton.jit(do_not_specialize=["num_layers"])
def grad_norms(
    table,
    num_layers,
    sizes,
    first_chunks,
    layer_of_chunk,
    partial_sums,
    grad_scale,
    ELEMENT: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Per chunk: the sum of the squares of the gradient."""
    layer, start, size = _chunk_of_layer(sizes, first_chunks, layer_of_chunk, CHUNK)
    unscale = _unscale(grad_scale)
    if (size == CHUNK) & _is_aligned(table, 1, num_layers, layer):
        total = _grad_squares(table, num_layers, layer, start, size, unscale, ELEMENT, CHUNK, BLOCK, True)
    else:
        total = _grad_squares(table, num_layers, layer, start, size, unscale, ELEMENT, CHUNK, BLOCK, False)
    tl.store(partial_sums + tl.program_id(0), total)


@triton.jit
def _layer_sum(partial_sums, first_chunks, layer, BLOCK: tl.constexpr):
    first, last = tl.load(first_chunks + layer), tl.load(first_chunks + layer + 1)
    totals = tl.zeros([BLOCK], tl.float32)
    for start in range(first, last, BLOCK):
        chunks = start + tl.arange(0, BLOCK)
        totals += tl.load(partial_sums + chunks, mask=chunks < last, other=0.0)
    return tl.sum(totals, axis=0)


@triton.jit(do_not_specialize=["num_layers"])
def second_moments(
    table,
    num_layers,
    first_chunks,
    partial_sums,
    sq_norms,
    factors,
    grad_scale,
    found_inf,
    lr,
    beta2,
    one_minus_beta2,
    eps,
    averaging,
    LR_ON_DEVICE: tl.constexpr,
    AMSGRAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Per layer: the second moment, from it the gradient's factor, and the step size before `luc`."""
    layer = tl.program_id(0)
    if found_inf is not None and tl.load(found_inf) != 0:
        return
    if sq_norms is None:
        sq_norm = _layer_sum(partial_sums, first_chunks, layer, BLOCK)
    else:
        unscale = _unscale(grad_scale)
        sq_norm = tl.load(sq_norms + layer) * unscale * unscale
    exp_avg_sq = _address(table, 3, num_layers, layer, tl.float32, False)
    v = tl.load(exp_avg_sq)
    v = tl.where(v == 0, sq_norm, beta2 * v + one_minus_beta2 * sq_norm)
    tl.store(exp_avg_sq, v)
    if AMSGRAD:
        max_exp_avg_sq = _address(table, 4, num_layers, layer, tl.float32, False)
        largest = tl.load(max_exp_avg_sq)
        v = tl.where((v > largest) | (v != v), v, largest)  # a NaN stays
        tl.store(max_exp_avg_sq, v)
    denom = tl.sqrt_rn(v) + eps
    # With eps = 0, a layer that never saw a nonzero gradient has g / d = 0 / 0; it must not move.
    tl.store(factors + layer, tl.where(denom == 0, 0.0, tl.div_rn(averaging, denom)))
    tl.store(factors + num_layers + layer, tl.load(lr).to(tl.float32) if LR_ON_DEVICE else lr)


@triton.jit
def _new_moment(grad, moment, w, lanes, size, factor, unscale, beta1, decay, WHOLE: tl.constexpr):
    g = _load(grad, lanes, size, WHOLE) * unscale
    # Without decay there is none of an infinite weight either, where 0 times infinity would be NaN.
    decayed = tl.where(decay == 0, 0.0, decay * w)
    return beta1 * _load(moment, lanes, size, WHOLE) + factor * g + decayed


@triton.jit
def _luc_squares(
    table, num_layers, layer, start, size, factor, unscale, beta1, decay, ELEMENT, CHUNK, BLOCK, WHOLE: tl.constexpr
):
    grad = _address(table, 0, num_layers, layer, ELEMENT, WHOLE) + start
    param = _address(table, 1, num_layers, layer, ELEMENT, WHOLE) + start
    moment = _address(table, 2, num_layers, layer, ELEMENT, WHOLE) + start
    param_squares = tl.zeros([BLOCK], tl.float32)
    moment_squares = tl.zeros([BLOCK], tl.float32)
    for offset in range(0, CHUNK, BLOCK):
        lanes = offset + tl.arange(0, BLOCK)
        w = _load(param, lanes, size, WHOLE)
        m = _new_moment(grad, moment, w, lanes, size, factor, unscale, beta1, decay, WHOLE)
        param_squares += w * w
        moment_squares += m * m
    return tl.sum(param_squares, axis=0), tl.sum(moment_squares, axis=0)


@triton.jit(do_not_specialize=["num_layers", "num_chunks"])
def luc_norms(
    table,
    num_layers,
    sizes,
    first_chunks,
    layer_of_chunk,
    num_chunks,
    partial_sums,
    factors,
    grad_scale,
    found_inf,
    beta1,
    decay,
    ELEMENT: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Per chunk: the sums of the squares of the weights and of the new moment, which `update` will compute again."""
    if found_inf is not None and tl.load(found_inf) != 0:
        return
    layer, start, size = _chunk_of_layer(sizes, first_chunks, layer_of_chunk, CHUNK)
    unscale = _unscale(grad_scale)
    factor = tl.load(factors + layer)
    if (size == CHUNK) & _is_aligned(table, 3, num_layers, layer):
        params, moments = _luc_squares(
            table, num_layers, layer, start, size, factor, unscale, beta1, decay, ELEMENT, CHUNK, BLOCK, True
        )
    else:
        params, moments = _luc_squares(
            table, num_layers, layer, start, size, factor, unscale, beta1, decay, ELEMENT, CHUNK, BLOCK, False
        )
    tl.store(partial_sums + tl.program_id(0), params)
    tl.store(partial_sums + num_chunks + tl.program_id(0), moments)


@triton.jit(do_not_specialize=["num_layers", "num_chunks"])
def clip_step_sizes(
    num_layers,
    first_chunks,
    num_chunks,
    partial_sums,
    factors,
    found_inf,
    luc_trust,
    luc_eps,
    BLOCK: tl.constexpr,
):
    """Per layer: bound the step size by the ratio of the weights' norm to the moment's."""
    layer = tl.program_id(0)
    if found_inf is not None and tl.load(found_inf) != 0:
        return
    param_norm = tl.sqrt_rn(_layer_sum(partial_sums, first_chunks, layer, BLOCK))
    moment_norm = tl.sqrt_rn(_layer_sum(partial_sums + num_chunks, first_chunks, layer, BLOCK))
    denom = moment_norm + luc_eps
    # With luc_eps = 0, a layer of zeros without momentum has 0 / 0; it must not move.
    ratio = tl.where(denom == 0, 0.0, tl.div_rn(luc_trust * param_norm, denom))
    lr = tl.load(factors + num_layers + layer)
    tl.store(factors + num_layers + layer, tl.where(ratio > lr, lr, ratio))


@triton.jit
def _update_chunk(
    table,
    num_layers,
    layer,
    start,
    size,
    factor,
    step_size,
    unscale,
    beta1,
    decay,
    ELEMENT,
    CHUNK,
    BLOCK,
    WHOLE: tl.constexpr,
):
    grad = _address(table, 0, num_layers, layer, ELEMENT, WHOLE) + start
    param = _address(table, 1, num_layers, layer, ELEMENT, WHOLE) + start
    moment = _address(table, 2, num_layers, layer, ELEMENT, WHOLE) + start
    for offset in range(0, CHUNK, BLOCK):
        lanes = offset + tl.arange(0, BLOCK)
        w = _load(param, lanes, size, WHOLE)
        m = _new_moment(grad, moment, w, lanes, size, factor, unscale, beta1, decay, WHOLE)
        _store(moment, lanes, size, m, ELEMENT, WHOLE)
        _store(param, lanes, size, w - step_size * m, ELEMENT, WHOLE)


@triton.jit(do_not_specialize=["num_layers"])
def update(
    table,
    num_layers,
    sizes,
    first_chunks,
    layer_of_chunk,
    factors,
    grad_scale,
    found_inf,
    beta1,
    decay,
    ELEMENT: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Per chunk: write the first moment and the weights."""
    if found_inf is not None and tl.load(found_inf) != 0:
        return
    layer, start, size = _chunk_of_layer(sizes, first_chunks, layer_of_chunk, CHUNK)
    unscale = _unscale(grad_scale)
    factor = tl.load(factors + layer)
    step_size = tl.load(factors + num_layers + layer)
    if (size == CHUNK) & _is_aligned(table, 3, num_layers, layer):
        _update_chunk(
            table, num_layers, layer, start, size, factor, step_size, unscale, beta1, decay, ELEMENT, CHUNK, BLOCK, True
        )
    else:
        _update_chunk(
            table,
            num_layers,
            layer,
            start,
            size,
            factor,
            step_size,
            unscale,
            beta1,
            decay,
            ELEMENT,
            CHUNK,
            BLOCK,
            False,
        )
