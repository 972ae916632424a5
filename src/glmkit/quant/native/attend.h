// Attention of single tokens over keys and values in blocks, one level; level.h includes it. A piece is a token, a head of
// keys and values, and up to 4 of the query heads that share it. Scores, weights and sums are float32.
INL void NAME(widths)(const attending *a, const void *from, int64_t d, vf *out, int count) {  // count vectors of a key or value
  UNROLL for (int i = 0; i < count; i++) out[i] = a->bf16 ? FROM_BF16((const uint16_t *)from + d + i * LANES) : NAME(load)((const float *)from + d + i * LANES);
}
INL vf NAME(exp)(vf x) {  // of -87..0; relative error below 1e-6
  const vf n = x * 1.44269504f + 12582912.0f, f = n - 12582912.0f, r = x - f * 0.693359375f - f * -2.12194440e-4f; vi power; vf scale;
  memcpy(&power, &n, sizeof n); power = (power - 0x4b400000 + 127) * (1 << 23); memcpy(&scale, &power, sizeof n);
  return scale * (((((r * (1.0f / 720) + 1.0f / 120) * r + 1.0f / 24) * r + 1.0f / 6) * r + 0.5f) * r * r + r + 1.0f);
}
#define PLACE(s, values) (a->arena + (((table[(s) / a->block] * 2 + (values)) * a->kv_heads + head) * a->block + (s) % a->block) * D * size)
INL void NAME(weigh)(const attending *a, int64_t row, int64_t head, int64_t at, int64_t d, const float *weights, int64_t room, const float *total, const int G, const int V) {
  const int64_t D = a->width, size = a->bf16 ? 2 : 4, from = a->firsts[row], to = a->lasts[row], *table = a->table + row * a->columns; vf acc[4][8];
  UNROLL for (int g = 0; g < G; g++) UNROLL for (int i = 0; i < V; i++) acc[g][i] = (vf){0};
  for (int64_t s = from; s < to;) {
    const char *value = PLACE(s, 1); const int64_t end = s + a->block - s % a->block < to ? s + a->block - s % a->block : to;
    for (; s < end; s++, value += D * size) {
      vf v[8]; NAME(widths)(a, value, d, v, V);
      UNROLL for (int g = 0; g < G; g++) { const vf w = SPLAT(weights[g * room + s - from]); UNROLL for (int i = 0; i < V; i++) acc[g][i] = MULTIPLY_ADD(v[i], w, acc[g][i]); }
    }
  }
  UNROLL for (int g = 0; g < G; g++) UNROLL for (int i = 0; i < V; i++) {
    float lanes[LANES]; const int64_t place = at + g * D + d + i * LANES; NAME(store)(lanes, acc[g][i] * total[g]);
    if (!a->bf16) memcpy((float *)a->out + place, lanes, sizeof lanes);
    else for (int lane = 0; lane < LANES; lane++) ((uint16_t *)a->out)[place + lane] = to_bf16(lanes[lane]);
  }
}
INL void NAME(attend_heads)(const attending *a, int64_t row, int64_t head, int64_t first, const int G, float *buffer) {
  const int wide = G == 1 ? 8 : G == 2 ? 4 : 2;
  const int64_t D = a->width, size = a->bf16 ? 2 : 4, from = a->firsts[row], to = a->lasts[row], room = (to - from + 15) / 16 * 16;
  const int64_t *table = a->table + row * a->columns, at = (row * a->heads + head * a->shared + first) * D;
  float *q = buffer, *scores = buffer + 4 * D, total[4];
  for (int64_t d = 0; d < G * D; d += LANES) { vf v; NAME(widths)(a, (const char *)a->q + at * size, d, &v, 1); NAME(store)(q + d, v * a->scale); }
  for (int64_t s = from; s < to;) {
    const char *key = PLACE(s, 0); const int64_t end = s + a->block - s % a->block < to ? s + a->block - s % a->block : to;
    for (; s < end; s++, key += D * size) {
      vf acc[4]; UNROLL for (int g = 0; g < G; g++) acc[g] = (vf){0};
      for (int64_t d = 0; d < D; d += LANES) {
        vf k; NAME(widths)(a, key, d, &k, 1);
        UNROLL for (int g = 0; g < G; g++) acc[g] = MULTIPLY_ADD(k, NAME(load)(q + g * D + d), acc[g]);
      }
      UNROLL for (int g = 0; g < G; g++) scores[g * room + s - from] = NAME(sum)(acc[g]);
    }
  }
  for (int g = 0; g < G; g++) {  // a score that is no number stays one: MAXIMUM gives its second argument then
    float *own = scores + g * room, lanes[LANES], most = -INFINITY; vf top = SPLAT(-INFINITY), sum = {0};
    for (int64_t s = to - from; s < room; s++) own[s] = -INFINITY;
    for (int64_t s = 0; s < room; s += LANES) top = MAXIMUM(NAME(load)(own + s), top);
    NAME(store)(lanes, top); for (int i = 0; i < LANES; i++) most = lanes[i] > most ? lanes[i] : most;
    for (int64_t s = 0; s < room; s += LANES) NAME(store)(own + s, NAME(exp)(MAXIMUM(SPLAT(-87.0f), NAME(load)(own + s) - most)));
    for (int64_t s = to - from; s < room; s++) own[s] = 0;
    for (int64_t s = 0; s < room; s += LANES) sum += NAME(load)(own + s);
    total[g] = 1 / NAME(sum)(sum);
  }
  int64_t d = 0;
  for (; d + wide * LANES <= D; d += wide * LANES) NAME(weigh)(a, row, head, at, d, scores, room, total, G, wide);
  for (; d < D; d += LANES) NAME(weigh)(a, row, head, at, d, scores, room, total, G, 1);
}
#undef PLACE
NOINLINE FN void NAME(attend)(const attending *a, int64_t row, int64_t head, int64_t first, void *buffer) {
  for (int64_t end = first + 4 < a->shared ? first + 4 : a->shared; first < end;) {
    if (end - first == 4) { NAME(attend_heads)(a, row, head, first, 4, buffer); first += 4; }
    else if (end - first >= 2) { NAME(attend_heads)(a, row, head, first, 2, buffer); first += 2; }
    else { NAME(attend_heads)(a, row, head, first, 1, buffer); first += 1; }
  }
}
