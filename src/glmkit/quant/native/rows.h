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
NOINLINE FN void NAME(norm)(const norming *n, int64_t row) {
  const int64_t width = n->width, start = row * width; vf sums[4]; float square = 0;
  for (int i = 0; i < 4; i++) sums[i] = (vf){0};
  for (int64_t at = 0; at < width; at += LANES) { const vf v = NAME(get)(n->x, start + at, n->bf16); sums[at / LANES % 4] = MULTIPLY_ADD(v, v, sums[at / LANES % 4]); }
  for (int i = 0; i < 4; i++) square += NAME(sum)(sums[i]);
  const vf factor = SPLAT(1 / sqrtf(square / (float)width + n->eps));
  for (int64_t at = 0; at < width; at += LANES)
    NAME(put)(n->out, start + at, NAME(rounded)(NAME(get)(n->x, start + at, n->bf16) * factor, n->bf16) * NAME(get)(n->weight, at, n->bf16), n->bf16);
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
    memcpy((char *)r->out + (start + turning) * size, (const char *)r->x + (start + turning) * size, (size_t)((r->width - turning) * size));
  }
}
