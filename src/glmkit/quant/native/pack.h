// Numbers as published into panels (their layout: quant/panels.py).
typedef struct { const uint8_t *from; uint8_t *to; int64_t rows, columns, stride, bits, nibbles; } packing;
static INLINE int number_at(const packing *p, const uint8_t *row, int64_t column) {
  if (!p->nibbles) return (int8_t)row[column];
  return column % 2 ? (int8_t)(row[column / 2] << 4) >> 4 : (int8_t)row[column / 2] >> 4;
}
static void pack_piece(const void *work, int64_t i, int64_t pieces, void *buffer) {
  const packing *p = work; const int64_t panels = (p->rows + 15) / 16, K = (p->columns + 31) / 32 * 32, wide = 32 / p->bits, fast = p->columns / wide * wide;
  (void)buffer;
  for (int64_t panel = panels * i / pieces; panel < panels * (i + 1) / pieces; panel++) for (int64_t r = 0; r < 16; r++) {
    uint8_t *to = p->to + panel * K * 2 * p->bits + 4 * r; const int real = panel * 16 + r < p->rows; int64_t k = 0;
    const uint8_t *row = p->from + (panel * 16 + r) * p->stride;
    for (; real && k < fast; k += wide, to += 64) {
      uint32_t v; const uint8_t *at = row + (p->nibbles ? k / 2 : k);
      if (p->bits == 8) { memcpy(&v, at, 4); v ^= 0x80808080u; }
      else if (p->nibbles) {  // columns 0, 1, ... are the high and low halves of bytes 0, ...
        memcpy(&v, at, 4); const uint32_t high = v >> 4 & 0x0f0f0f0f, low = v & 0x0f0f0f0f;  // columns 0 2 4 6, 1 3 5 7
        const uint32_t h = high | high >> 12, l = low | low >> 12;                           // bytes: 0|4, 2|6 and 1|5, 3|7
        v = ((h & 0xff) | (h & 0xff00) << 8 | (l & 0xff) << 8 | (l & 0xff00) << 16) ^ 0x88888888u;
      } else {
        uint32_t first, second; memcpy(&first, at, 4); memcpy(&second, at + 4, 4);
        v = ((first & 0x0f0f0f0f) | (second & 0x0f0f0f0f) << 4) ^ 0x88888888u;
      }
      memcpy(to, &v, 4);
    }
    for (; k < K; k += wide, to += 64) for (int b = 0; b < 4; b++) {
      const int first = real && k + b < p->columns ? number_at(p, row, k + b) : 0;
      const int second = p->bits == 4 && real && k + 4 + b < p->columns ? number_at(p, row, k + 4 + b) : 0;
      to[b] = (uint8_t)(p->bits == 8 ? first + 128 : (first + 8) | (second + 8) << 4);
    }
  }
}
// from: rows of int8, or of two 4-bit numbers a byte, the even column in the high half (nibbles); stride in bytes
API int glm_pack(const void *from, int64_t nibbles, int64_t rows, int64_t columns, int64_t stride, int64_t bits, void *to, int64_t threads) {
  const packing p = {from, to, rows, columns, stride, bits, nibbles}; const int64_t panels = (rows + 15) / 16;
  return run_pieces(pack_piece, &p, threads == 1 ? 1 : panels < 8 * threads ? panels : 8 * threads, threads, 0);
}
