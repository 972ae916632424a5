// Norms and rotations of single rows, one level; level.h includes it. Each step is rounded to the type of the row, as
// PyTorch's operators one after the other do.
INL vf NAME(get)(const void *from, int64_t at, int64_t bf16) { return bf16 ? FROM_BF16((const uint16_t *)from + at) : NAME(load)((const float *)from + at); }
INL void NAME(put)(void *to, int64_t at, vf v, int64_t bf16) {
  float lanes[LANES]; NAME(store)(lanes, v);
  if (!bf16) memcpy((float *)to + at, lanes, sizeof lanes);
  else for (int i = 0; i < LANES; i++) ((uint16_t *)to)[at + i] = to_bf16(lanes[i]);
}
INL vf NAME(rounded)(vf v, int64_t bf16) {
  float lanes[LANES]; if (!bf16) return v;
  NAME(store)(lanes, v); for (int i = 0; i < LANES; i++) lanes[i] = from_bf16(to_bf16(lanes[i]));
  return NAME(load)(lanes);
}
NOINLINE FN void NAME(norm)(const norming *n, int64_t row) {  // RMS, or with a bias that of a layer
  const int64_t width = n->width, start = row * width, bf16 = n->bf16; vf sums[4], middle = {0}; float total = 0;
  for (int turn = n->bias ? 0 : 1; turn < 2; turn++) {
    for (int i = 0; i < 4; i++) sums[i] = (vf){0};
    for (int64_t at = 0; at < width; at += LANES) {
      const vf v = NAME(get)(n->x, start + at, bf16) - middle; vf *sum = sums + at / LANES % 4;
      if (turn) *sum = MULTIPLY_ADD(v, v, *sum); else *sum += v;
    }
    total = 0; for (int i = 0; i < 4; i++) total += NAME(sum)(sums[i]);
    if (!turn) middle = SPLAT(total / (float)width);
  }
  const vf factor = SPLAT(1 / sqrtf(total / (float)width + n->eps));
  for (int64_t at = 0; at < width; at += LANES) {
    const vf v = (NAME(get)(n->x, start + at, bf16) - middle) * factor, weight = NAME(get)(n->weight, at, bf16);
    NAME(put)(n->out, start + at, n->bias ? v * weight + NAME(get)(n->bias, at, bf16) : NAME(rounded)(v, bf16) * weight, bf16);
  }
}
NOINLINE FN void NAME(add)(const void *x, float factor, const void *y, void *out, int64_t count, int64_t bf16) {  // factor * x + y
  for (int64_t at = 0; at < count; at += LANES) {
    vf v = NAME(get)(x, at, bf16); if (factor != 1) v = NAME(rounded)(v * factor, bf16);
    NAME(put)(out, at, v + NAME(get)(y, at, bf16), bf16);
  }
}
// An activation of x, times y where there is one: x s(x), or x s(2 sqrt(2 / pi) (x + 0.044715 x^3)), the tanh form of GELU.
NOINLINE FN void NAME(activate)(const void *x, int silu, const void *y, void *out, int64_t count, int64_t bf16) {
  for (int64_t at = 0; at < count; at += LANES) {
    const vf v = NAME(get)(x, at, bf16), u = silu ? v : 1.5957691216057308f * (v + 0.044715f * v * v * v); float lanes[LANES], shares[LANES];
    NAME(store)(lanes, u); for (int i = 0; i < LANES; i++) shares[i] = -fabsf(lanes[i]);
    const vf small = NAME(exp)(MAXIMUM(SPLAT(-87.0f), NAME(load)(shares)));
    NAME(store)(shares, small); for (int i = 0; i < LANES; i++) shares[i] = lanes[i] >= 0 ? 1 : shares[i];
    vf z = v * (NAME(load)(shares) / (1.0f + small));
    if (y) z = NAME(rounded)(z, bf16) * NAME(get)(y, at, bf16);
    NAME(put)(out, at, z, bf16);
  }
}
// Channels turn with those half a stream away, or with their neighbours (interleaved): x cos + turned sin.
NOINLINE FN void NAME(rotate)(const rotating *r, int64_t row) {
  const int64_t turning = r->turning, half = r->interleaved ? 1 : turning / r->streams / 2, size = r->bf16 ? 2 : 4;
  float x[MOST_TURNING], turned[MOST_TURNING], cosines[MOST_TURNING], sines[MOST_TURNING];
  for (int64_t d = 0; d < turning; d += LANES) {
    NAME(store)(cosines + d, NAME(rounded)(NAME(load)(r->cosines + row * turning + d), r->bf16));
    NAME(store)(sines + d, NAME(rounded)(NAME(load)(r->sines + row * turning + d), r->bf16));
  }
  for (int64_t head = 0; head < r->heads; head++) {
    const int64_t start = (row * r->heads + head) * r->width;
    for (int64_t d = 0; d < turning; d += LANES) NAME(store)(x + d, NAME(get)(r->x, start + d, r->bf16));
    for (int64_t from = 0; from < turning; from += 2 * half) for (int64_t d = from; d < from + half; d++) { turned[d] = -x[d + half]; turned[d + half] = x[d]; }
    for (int64_t d = 0; d < turning; d += LANES) {
      const vf one = NAME(rounded)(NAME(load)(x + d) * NAME(load)(cosines + d), r->bf16), other = NAME(rounded)(NAME(load)(turned + d) * NAME(load)(sines + d), r->bf16);
      NAME(put)(r->out, start + d, one + other, r->bf16);
    }
    if (r->out != r->x) memcpy((char *)r->out + (start + turning) * size, (const char *)r->x + (start + turning) * size, (size_t)((r->width - turning) * size));
  }
}
