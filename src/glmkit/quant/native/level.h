// The products of one level, in vectors of LANES numbers. kern.c includes this file once a level, after it has defined
// NAME, TARGET, LANES, vi and vf (vectors of int32 and float), DOT8, DOT4, OFFSET8, the loads below, and block sizes.
#define PARTS (16 / LANES)
#define FN static TARGET
#define INL static INLINE TARGET
#define EACH(count) UNROLL for (int m = 0; m < (count); m++) UNROLL for (int t = 0; t < panels; t++) UNROLL for (int h = 0; h < PARTS; h++)

INL vi NAME(line)(const uint8_t *p) { vi v; memcpy(&v, p, sizeof v); return v; }
INL vf NAME(load)(const float *p) { vf v; memcpy(&v, p, sizeof v); return v; }
INL void NAME(store)(float *p, vf v) { memcpy(p, &v, sizeof v); }
INL float NAME(sum)(vf v) {
  float lanes[LANES]; NAME(store)(lanes, v);
  UNROLL for (int width = LANES / 2; width; width /= 2) UNROLL for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
  return lanes[0];
}
// 16 scales of a panel and a group of columns, part h of them
INL vf NAME(scale)(const matrix *w, int64_t panel, int64_t group, int h) {
  const int64_t at = (panel * w->groups + group) * 16 + h * LANES;
  return w->kind == BYTES ? FROM_BYTES((const uint8_t *)w->scales + at) : FROM_HALF((const uint16_t *)w->scales + at);
}

// Rounded activations: numbers in blocks of rows, [column / 4][row of the block][4]; sums of 32 and of 128 numbers.
FN void NAME(round)(const call *c, int64_t row, int64_t first, int64_t block) {
  const int64_t K = c->padded, groups = (K + 127) / 128; int8_t *q = c->q + first * K + 4 * (row - first);
  for (int64_t g = 0; g < groups; g++) {
    float x[128]; int32_t bits[128], top = 0; int8_t numbers[128];
    const int64_t have = c->columns - g * 128 < 128 ? c->columns - g * 128 : 128;
    memset(x, 0, sizeof x); read_floats(c, row, g * 128, have, x); memcpy(bits, x, sizeof x);
    for (int i = 0; i < 128; i++) { int32_t a = bits[i] & 0x7fffffff; top = a > top ? a : top; }  // floats are ordered as their bits
    float most; memcpy(&most, &top, 4);
    const float by = top < 0x7f800000 && most > 1e-35f ? 127 / most : 0;
    if (by == 0) memset(x, 0, sizeof x);  // infinity times 0 would be no number
    for (int i = 0; i < 128; i++) x[i] = x[i] * by + 12582912.0f;  // 1.5 * 2^23: the low bits are the number, rounded half to even
    memcpy(bits, x, sizeof x); int32_t all = 0;
    for (int i = 0; i < 128; i++) numbers[i] = (int8_t)(bits[i] -= 0x4b400000);
    for (int64_t k = 0; k < 128 && g * 128 + k < K; k += 32) {
      int32_t sum = 0; for (int i = 0; i < 32; i++) sum += bits[k + i];
      c->sums[row * (K / 32) + g * 4 + k / 32] = sum; all += sum;
      for (int i = 0; i < 32; i += 4) memcpy(q + (g * 128 + k + i) * block, numbers + k + i, 4);
    }
    c->group_sums[row * groups + g] = all; c->x_scales[row * groups + g] = top < 0x7f800000 ? most / 127 : NAN;
  }
}

// M rows of rounded activations times one panel or two. Every level and every block of rows adds the same numbers in the
// same order: integers under a weight scale, floats under an activation scale, then over these groups.
INL void NAME(product)(const call *c, const matrix *w, int64_t panel, int64_t row, const uint8_t *p0, const uint8_t *p1,
                       const int M, const int panels, const int bits) {
  const int64_t K = c->padded, groups = (K + 127) / 128, unit = w->kind == PER_ROW || w->group % 128 == 0 ? 128 : 32;
  const int8_t *x = c->q + row * K; const float *xs = c->x_scales + row * groups;
  const int32_t *sums = unit == 128 ? c->group_sums + row * groups : c->sums + row * (K / 32); const int64_t per = unit == 128 ? groups : K / 32;
  vf acc[8][2][PARTS], part[8][2][PARTS]; const int offset = bits == 8 ? OFFSET8 : 8, split = M < 4 && panels == 1;
  int64_t group = 0, inside = 0, number = 0;  // counted, for a division costs as much as 32 columns
  EACH(M) acc[m][t][h] = (vf){0};
  for (int64_t g = 0; g < groups; g++) {
    EACH(M) part[m][t][h] = (vf){0};
    for (int64_t u = g * 128; u < (g + 1) * 128 && u < K; u += unit, number++) {
      vi p[8][2][PARTS], r[8][2][PARTS]; const int64_t end = u + unit < K ? u + unit : K;
      EACH(M) { p[m][t][h] = (vi){0} - offset * sums[m * per + number]; r[m][t][h] = (vi){0}; }
      for (int64_t k = u; k < end; k += 8) UNROLL for (int t = 0; t < panels; t++) UNROLL for (int h = 0; h < PARTS; h++) {
        const uint8_t *line = (t ? p1 : p0) + k * 2 * bits + 4 * LANES * h; vi a = NAME(line)(line), b = a;
        AHEAD(line);
        if (bits == 8) b = NAME(line)(line + 64); else { a = LOW(b); b = HIGH(b); }
        UNROLL for (int m = 0; m < M; m++) {
          int32_t u0, u1; memcpy(&u0, x + k * M + 4 * m, 4); memcpy(&u1, x + (k + 4) * M + 4 * m, 4);
          if (bits == 4) { DOT4(p[m][t][h], r[m][t][h], split, a, b, u0, u1); }
          else if (split) { DOT8(p[m][t][h], a, u0); DOT8(r[m][t][h], b, u1); } else { DOT8(p[m][t][h], a, u0); DOT8(p[m][t][h], b, u1); }
        }
      }
      if (split) EACH(M) p[m][t][h] += r[m][t][h];
      if (w->kind == PER_ROW) EACH(M) part[m][t][h] = TO_FLOAT(p[m][t][h]);
      else UNROLL for (int t = 0; t < panels; t++) UNROLL for (int h = 0; h < PARTS; h++) {
        const vf s = NAME(scale)(w, panel + t < w->panels ? panel + t : panel, group, h);
        UNROLL for (int m = 0; m < M; m++) part[m][t][h] += TO_FLOAT(p[m][t][h]) * s;
      }
      if ((inside += unit) == w->group) { inside = 0; group++; }
    }
    EACH(M) acc[m][t][h] += part[m][t][h] * xs[m * groups + g];
  }
  float out[16];
  for (int m = 0; m < M; m++) for (int t = 0; t < panels && panel + t < w->panels; t++) {
    UNROLL for (int h = 0; h < PARTS; h++) NAME(store)(out + h * LANES, acc[m][t][h] * NAME(load)(w->row_scale + (panel + t) * 16 + h * LANES));
    write_floats(c, w, row + m, (panel + t) * 16, 16, out);
  }
}
#define PRODUCT(M, panels, bits) NOINLINE FN void NAME(product_##bits##_##panels##_##M)(const call *c, const matrix *w, int64_t panel, int64_t row, \
  const uint8_t *p0, const uint8_t *p1) { NAME(product)(c, w, panel, row, p0, p1, M, panels, bits); }
#define ROWS(block, panels, bits) for (; row + block <= c->rows; row += block) NAME(product_##bits##_##panels##_##block)(c, w, panel, row, p0, p1);
BLOCKS(PRODUCT, 4) BLOCKS(PRODUCT, 8)
PRODUCT(1, 2, 4) PRODUCT(1, 2, 8)
FN void NAME(few)(const call *c, const matrix *w, int64_t panel, int64_t end) {
  const int64_t size = c->padded * 2 * w->bits; const uint8_t *p0 = w->weight + panel * size, *p1 = p0 + size;
  if (c->rows == 1) for (; panel + 2 <= end; panel += 2, p0 += 2 * size, p1 += 2 * size) {  // two streams come faster than one
    if (w->bits == 8) NAME(product_8_2_1)(c, w, panel, 0, p0, p1); else NAME(product_4_2_1)(c, w, panel, 0, p0, p1);
  }
  for (; panel < end; panel++, p0 += size) {
    int64_t row = 0;
    if (w->bits == 8) { BLOCKS(ROWS, 8) } else { BLOCKS(ROWS, 4) }
  }
}
#ifdef MANY  // a pair of panels is widened to bytes once, then all rows pass it
PRODUCT(6, 2, 8) PRODUCT(4, 2, 8) PRODUCT(2, 2, 8)
FN void NAME(widen)(const call *c, const matrix *w, int64_t panel, uint8_t *out) {  // number * byte scale (-128..112) + 128
  const uint8_t *from = w->weight + panel * c->padded * 8; vi s = (vi){0} + 0x00010001;  // both halves of a lane
  for (int64_t k = 0; k < c->padded; k += 8, from += 64, out += 128) {
    if (w->kind == BYTES && k % 32 == 0) s = TO_INT(NAME(scale)(w, panel, k / w->group, 0)) * 0x00010001;
    const vi v = NAME(line)(from), a = WIDEN(LOW(v), s), b = WIDEN(HIGH(v), s);
    memcpy(out, &a, 64); memcpy(out + 64, &b, 64);
  }
}
#ifdef WITH_TILES
#include "amx.h"
#endif
FN void NAME(many)(const call *c, const matrix *w, int64_t panel, uint8_t *buffer) {
  const int64_t size = c->padded * 16, next = panel + 1 < w->panels ? size : 0; matrix wide = *w;
  const uint8_t *p0 = w->weight + panel * size, *p1 = p0 + next; int64_t row = 0;
  if (w->bits == 4) {
    NAME(widen)(c, w, panel, buffer); if (next) NAME(widen)(c, w, panel + 1, buffer + size);
    p0 = buffer; p1 = p0 + next; wide.kind = w->kind == BYTES ? PER_ROW : w->kind;
  }
#ifdef TILES
  if (c->tiles) { product_tiles_avx512(c, &wide, panel, p0, p1); return; }
#endif
  w = &wide; ROWS(6, 2, 8) ROWS(4, 2, 8) ROWS(2, 2, 8) ROWS(1, 2, 8)
}
#endif

// Float activations: runs of columns of a panel (or two) become floats, all rows pass them. buffer: these, then sums.
INL void NAME(exact_rows)(const call *c, const float *wide, float *sums, int64_t row, int64_t from, int64_t to, const int M, const int panels) {
  vf acc[EXACT_ROWS][2][PARTS]; sums += row * panels * 16;
  EACH(M) acc[m][t][h] = (vf){0};
  for (int64_t k = from; k < to; k++, wide += panels * 16) UNROLL for (int t = 0; t < panels; t++) UNROLL for (int h = 0; h < PARTS; h++) {
    const vf v = NAME(load)(wide + t * 16 + h * LANES);
    UNROLL for (int m = 0; m < M; m++) acc[m][t][h] = MULTIPLY_ADD(v, SPLAT(c->floats[(row + m) * c->float_stride + k]), acc[m][t][h]);
  }
  EACH(M) {  // sums of runs: less is rounded away than in one long sum
    float *sum = sums + (m * panels + t) * 16 + h * LANES; NAME(store)(sum, from ? NAME(load)(sum) + acc[m][t][h] : acc[m][t][h]);
  }
}
FN void NAME(exact)(const call *c, const matrix *w, int64_t panel, float *wide) {
  const int panels = EXACT_PANELS; float *sums = wide + RUN * panels * 16, out[16];
  for (int64_t from = 0; from < c->columns; from += RUN) {
    const int64_t to = from + RUN < c->columns ? from + RUN : c->columns; int64_t row = 0; vf s = SPLAT(1.0f);
    for (int t = 0; t < panels && panel + t < w->panels; t++) for (int h = 0; h < PARTS; h++) for (int64_t k = from; k < to; k += w->bits == 8 ? 4 : 8) {
      const vi v = NAME(line)(w->weight + (panel + t) * c->padded * 2 * w->bits + k * 2 * w->bits + 4 * LANES * h);
      if (w->kind != PER_ROW && k % 32 == 0) s = NAME(scale)(w, panel + t, k / w->group, h);
      float *at = wide + ((k - from) * panels + t) * 16 + h * LANES;
      if (w->bits == 8) UNROLL for (int i = 0; i < 4; i++) NAME(store)(at + i * panels * 16, TO_FLOAT(((v >> 8 * i) & 255) - 128) * s);
      else UNROLL for (int i = 0; i < 8; i++) NAME(store)(at + i * panels * 16, TO_FLOAT(((v >> (8 * (i % 4) + i / 4 * 4)) & 15) - 8) * s);
    }
    for (; row + EXACT_ROWS <= c->rows; row += EXACT_ROWS) NAME(exact_rows)(c, wide, sums, row, from, to, EXACT_ROWS, panels);
    for (; row < c->rows; row++) NAME(exact_rows)(c, wide, sums, row, from, to, 1, panels);
  }
  for (int64_t row = 0; row < c->rows; row++) for (int t = 0; t < panels && panel + t < w->panels; t++) {
    UNROLL for (int h = 0; h < PARTS; h++) NAME(store)(out + h * LANES, NAME(load)(sums + (row * panels + t) * 16 + h * LANES) * NAME(load)(w->row_scale + (panel + t) * 16 + h * LANES));
    write_floats(c, w, row, (panel + t) * 16, 16, out);
  }
}

// Rows of floats as published (bits 32, or 16: bfloat16), 4 at a time; DOT_BF16 multiplies bfloat16 pairs as they are.
INL void NAME(dots)(const call *c, const matrix *w, int64_t n, int64_t row, const int N, const int M, const int bits, const int pairs) {
  const int64_t C = c->columns; float out[4] = {0}; int64_t k = 0; (void)pairs;
  const uint8_t *p = w->weight + n * C * bits / 8; vf acc[4][FLOAT_ROWS];
  UNROLL for (int r = 0; r < N; r++) UNROLL for (int m = 0; m < M; m++) acc[r][m] = (vf){0};
#ifdef DOT_BF16
  if (pairs) for (; k + 2 * LANES <= C; k += 2 * LANES) UNROLL for (int m = 0; m < M; m++) {
    const vi u = NAME(line)((const uint8_t *)((const uint16_t *)c->x + (row + m) * c->stride + k));
    UNROLL for (int r = 0; r < N; r++) if (m == 0) AHEAD(p + (r * C + k) * 2);
    UNROLL for (int r = 0; r < N; r++) acc[r][m] = DOT_BF16(acc[r][m], NAME(line)(p + (r * C + k) * 2), u);
  }
#endif
  for (; k + LANES <= C; k += LANES) {
    vf v[4]; UNROLL for (int r = 0; r < N; r++) v[r] = bits == 16 ? FROM_BF16((const uint16_t *)p + r * C + k) : NAME(load)((const float *)p + r * C + k);
    UNROLL for (int m = 0; m < M; m++) { const vf u = NAME(load)(c->floats + (row + m) * c->float_stride + k);
      UNROLL for (int r = 0; r < N; r++) acc[r][m] = MULTIPLY_ADD(v[r], u, acc[r][m]); }
  }
  UNROLL for (int m = 0; m < M; m++) {
    UNROLL for (int r = 0; r < N; r++) {
      out[r] = NAME(sum)(acc[r][m]);
      for (int64_t i = k; i < C; i++) out[r] += c->floats[(row + m) * c->float_stride + i] * (bits == 16 ? from_bf16(((const uint16_t *)p)[r * C + i]) : ((const float *)p)[r * C + i]);
    }
    write_floats(c, w, row + m, n, N, out);
  }
}
#define DOTS(name, bits, pairs) NOINLINE FN void NAME(name)(const call *c, const matrix *w, int64_t n, int64_t end) { \
  for (; n < end; n += n + 4 <= end ? 4 : 1) { int64_t row = 0; \
    if (n + 4 > end) for (; row < c->rows; row++) NAME(dots)(c, w, n, row, 1, 1, bits, pairs); \
    for (; row + FLOAT_ROWS <= c->rows; row += FLOAT_ROWS) NAME(dots)(c, w, n, row, 4, FLOAT_ROWS, bits, pairs); \
    for (; row + 2 <= c->rows; row += 2) NAME(dots)(c, w, n, row, 4, 2, bits, pairs); \
    for (; row < c->rows; row++) NAME(dots)(c, w, n, row, 4, 1, bits, pairs); } }
DOTS(dots_32, 32, 0) DOTS(dots_16, 16, 0)
#ifdef DOT_BF16
DOTS(dots_pairs, 16, 1)
#endif

#include "attend.h"
#include "rows.h"

// Panels first..end of one matrix
FN void NAME(run)(const call *c, const matrix *w, int64_t first, int64_t end, void *buffer) {
  const int64_t last = end * 16 < w->rows ? end * 16 : w->rows;
  if (w->bits == 32) NAME(dots_32)(c, w, first * 16, last);
#ifdef DOT_BF16
  else if (w->bits == 16 && c->bf16 && c->level >= AVX512_BF16) NAME(dots_pairs)(c, w, first * 16, last);
#endif
  else if (w->bits == 16) NAME(dots_16)(c, w, first * 16, last);
  else if (c->exact) for (; first < end; first += EXACT_PANELS) NAME(exact)(c, w, first, buffer);
#ifdef MANY
  else if (c->many) for (; first < end; first += 2) NAME(many)(c, w, first, buffer);
#endif
  else NAME(few)(c, w, first, end);
}
#undef NAME
#undef TARGET
#undef LANES
#undef vi
#undef vf
#undef DOT8
#undef DOT4
#undef OFFSET8
#undef TO_FLOAT
#undef FROM_BYTES
#undef FROM_HALF
#undef FROM_BF16
#undef MULTIPLY_ADD
#undef MAXIMUM
#undef BLOCKS
#undef FLOAT_ROWS
#undef EXACT_ROWS
#undef EXACT_PANELS
#undef MANY
#undef DOT_BF16
#undef PARTS
#undef FN
#undef INL
#undef EACH
#undef PRODUCT
#undef ROWS
#undef DOTS
