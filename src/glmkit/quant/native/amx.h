// Many rows on matrix tiles: a line of a panel is a row of a tile as it lies, 16 lines are 64 columns of 16 output rows.
// 32 rows of activations and a pair of panels at a time. The same numbers in the same order as in level.h.
#define TILES __attribute__((target(AVX512_NAMES ",amx-tile,amx-int8")))
#define ASK_FOR_TILES 0x1023  // arch_prctl: ARCH_REQ_XCOMP_PERM
#define TILE_DATA 18

// The system lends tiles to a process that asks; 0 where it does not.
static int tiles_are_lent(void) {
  static _Atomic int known;  // 1: no, 2: yes
  if (!known) known = syscall(SYS_arch_prctl, ASK_FOR_TILES, TILE_DATA) ? 1 : 2;
  return known == 2;
}
static INLINE TARGET_AVX512 void add_group(const call *c, const matrix *w, const int32_t *products, float *acc, int64_t panel, int64_t row, int64_t g, int64_t groups) {
  vf scale = {0};
  if (w->kind == HALF) scale = scale_avx512(w, panel, g * 128 / w->group, 0);
  for (int i = 0; i < 16; i++) {
    const int64_t at = (row + i) * groups + g;
    vf f = TO_FLOAT(line_avx512((const uint8_t *)(products + 16 * i)) - 128 * c->group_sums[at]);
    if (w->kind == HALF) f = f * scale;
    store_avx512(acc + 16 * i, load_avx512(acc + 16 * i) + f * c->x_scales[at]);
  }
}
TILES static void product_tiles_avx512(const call *c, const matrix *w, int64_t panel, const uint8_t *p0, const uint8_t *p1) {
  const int64_t K = c->padded, groups = (K + 127) / 128; _Alignas(64) float acc[4][256]; _Alignas(64) int32_t products[4][256]; float out[16];
  _Alignas(64) const struct { uint8_t palette, start, zero[14]; uint16_t bytes[16]; uint8_t rows[16]; } shape = {
    1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
  _tile_loadconfig(&shape);
  for (int64_t row = 0; row < c->rows; row += 32) {
    memset(acc, 0, sizeof acc);
    for (int64_t g = 0; g < groups; g++) {
      _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
      for (int64_t k = g * 128; k < g * 128 + 128 && k < K; k += 64) {
        _tile_loadd(4, c->q + row * K + k, K); _tile_loadd(5, c->q + (row + 16) * K + k, K);
        _tile_loadd(6, p0 + k * 16, 64); _tile_loadd(7, p1 + k * 16, 64);
        _tile_dpbsud(0, 4, 6); _tile_dpbsud(1, 4, 7); _tile_dpbsud(2, 5, 6); _tile_dpbsud(3, 5, 7);
      }
      _tile_stored(0, products[0], 64); _tile_stored(1, products[1], 64); _tile_stored(2, products[2], 64); _tile_stored(3, products[3], 64);
      for (int i = 0; i < 4; i++) add_group(c, w, products[i], acc[i], panel + i % 2 < w->panels ? panel + i % 2 : panel, row + i / 2 * 16, g, groups);
    }
    for (int i = 0; i < 4; i++) for (int m = 0; m < 16; m++) {
      const int64_t at = row + i / 2 * 16 + m, p = panel + i % 2;
      if (at >= c->rows || p >= w->panels) break;
      store_avx512(out, load_avx512(acc[i] + 16 * m) * load_avx512(w->row_scale + p * 16));
      write_floats(c, w, at, p * 16, 16, out);
    }
  }
  _tile_release();
}
