// Reading of memory and nothing else, to compare products with. Regions: address and number of lines of 64 bytes, in turn.
typedef struct { const int64_t *regions; int64_t count, lines, streams; _Atomic uint64_t *seen; } reading;
static INLINE void read_lines(const char *at, int64_t lines, const int64_t streams, uint64_t *sums) {
  for (int64_t i = 0; i < lines / streams; i++) for (int64_t s = 0; s < streams; s++) {
    uint64_t line[8]; memcpy(line, at + (s * (lines / streams) + i) * 64, 64);
    UNROLL for (int j = 0; j < 8; j++) sums[j] ^= line[j];
  }
}
static void read_piece(const void *work, int64_t i, int64_t pieces, void *buffer) {
  const reading *r = work; const int64_t lo = r->lines * i / pieces, hi = r->lines * (i + 1) / pieces; int64_t base = 0; uint64_t sums[8] = {0};
  (void)buffer;
  for (const int64_t *region = r->regions; region < r->regions + 2 * r->count; base += region[1], region += 2) {
    const int64_t a = lo > base ? lo - base : 0, b = hi < base + region[1] ? hi - base : region[1]; const char *at = (const char *)(intptr_t)region[0] + a * 64;
    if (a < b) { if (r->streams == 4) read_lines(at, b - a, 4, sums); else read_lines(at, b - a, 1, sums); }
  }
  for (int j = 0; j < 8; j++) atomic_fetch_xor(r->seen, sums[j]);
}
API int glm_read(const int64_t *regions, int64_t count, int64_t lines, int64_t streams, int64_t threads) {
  _Atomic uint64_t seen = 0; const reading r = {regions, count, lines, streams, &seen};
  return run_pieces(read_piece, &r, 8 * threads, threads, 0);
}
