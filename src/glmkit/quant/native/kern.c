// Products of few and of many rows with integer panels and with floats as published, on threads of its own.
//
// Plain C: no headers of Python or PyTorch but in the stub at the end. Layout of panels: quant/panels.py. A level is a set
// of instructions; the caller passes the one to use. What a level computes is written once, in level.h.
#define _GNU_SOURCE
#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "bytes of a line are read as little-endian numbers"
#endif
#if defined(__GNUC__) && !defined(GLM_PORTABLE)
#define GNU
#define INLINE inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#else
#define INLINE inline
#define NOINLINE
#define UNROLL
#endif
#ifdef _WIN32
#define API __declspec(dllexport)
#elif defined(GNU)
#define API __attribute__((visibility("default")))
#else
#define API
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(GNU) && defined(__x86_64__)
#include <immintrin.h>
#define X86
#endif
_Static_assert(sizeof(void *) == 8, "addresses are numbers of 64 bits");
enum { ABI = 1, RUN = 256, SMALL = 1 << 19 };            // columns that are floats at once, a multiple of 8; work for one thread
enum { PLAIN, AVX2, AVX512, AVX512_BF16, AMX, LEVELS };   // AVX512 with VNNI; AMX has all before it
enum { PER_ROW, BYTES, HALF };                            // scales of groups
typedef struct { int64_t weight, scales, row_scale, out, rows, group, bits, kind; } described;  // a matrix and its result
typedef struct { const uint8_t *weight; const void *scales; const float *row_scale; char *out; int64_t rows, group, bits, kind, panels, groups; } matrix;
typedef struct {
  const matrix *matrices; int64_t count, units;           // a unit is a pair of panels
  const char *x; int64_t rows, columns, stride, bf16;     // activations, as they come; stride in numbers
  int exact, many, tiles, level; int64_t ahead;           // bytes to ask memory for before they are used
  int64_t padded, block; int8_t *q; float *x_scales; int32_t *sums, *group_sums;  // rounded activations
  const float *floats; int64_t float_stride;              // or as floats
} call;
typedef struct {  // tokens over blocks of keys and values: (blocks, 2, kv_heads, block, width)
  const void *q; const char *arena; const int64_t *table, *firsts, *lasts; void *out;  // a line of table, and the slots seen, for each token
  int64_t rows, heads, kv_heads, shared, width, block, columns, bf16, level; float scale;
} attending;
enum { MOST_TURNING = 1024 };
typedef struct { const void *x, *weight, *bias; void *out; int64_t rows, width, bf16, level; float eps; } norming;
typedef struct { const void *x; const float *cosines, *sines; void *out; int64_t rows, heads, width, turning, streams, interleaved, bf16, level; } rotating;

static INLINE float from_bf16(uint16_t v) { uint32_t u = (uint32_t)v << 16; float f; memcpy(&f, &u, 4); return f; }
static INLINE float from_half(uint16_t v) {
  const uint32_t sign = (uint32_t)(v & 0x8000) << 16; uint32_t u = (uint32_t)(v & 0x7fff) << 13; float f;
  memcpy(&f, &u, 4); f *= 0x1p112f; memcpy(&u, &f, 4);    // the exponents' offsets differ by 112; subnormals come out right too
  if ((v & 0x7c00) == 0x7c00) u |= 0x7f800000;
  u |= sign; memcpy(&f, &u, 4); return f;
}
static INLINE uint16_t to_bf16(float f) {
  uint32_t u; memcpy(&u, &f, 4);
  return (uint16_t)((u & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (u + 0x7fff + (u >> 16 & 1)) >> 16);
}
static INLINE void read_floats(const call *c, int64_t row, int64_t column, int64_t count, float *out) {
  if (!c->bf16) { memcpy(out, c->x + (row * c->stride + column) * 4, (size_t)count * 4); return; }
  const uint16_t *from = (const uint16_t *)c->x + row * c->stride + column;
  for (int64_t i = 0; i < count; i++) out[i] = from_bf16(from[i]);
}
static INLINE void write_floats(const call *c, const matrix *w, int64_t row, int64_t column, int64_t count, const float *from) {
  if (column + count > w->rows) count = w->rows - column;
  if (!c->bf16) { memcpy(w->out + (row * w->rows + column) * 4, from, (size_t)count * 4); return; }
  uint16_t *to = (uint16_t *)w->out + row * w->rows + column;
  for (int64_t i = 0; i < count; i++) to[i] = to_bf16(from[i]);
}
// Intel's cores wait for memory unless they are told what comes: a third of the rate of INT4. AMD's lose by it.
#ifdef X86
#define BYTES_AHEAD (__builtin_cpu_is("intel") ? 2048 : 0)
#define AHEAD(p) __builtin_prefetch((p) + c->ahead)  // 0: of what is read now; a branch would cost more
#else
#define BYTES_AHEAD 0
#define AHEAD(p) (void)0
#endif
#define LOW(v) ((v) & 0x0f0f0f0f)
#define HIGH(v) (((v) >> 4) & 0x0f0f0f0f)
#define FLIP ((int32_t)0x80808080)
#define SPLAT(s) ((s) - (vf){0})

// ---- plain: vectors of 4 where the compiler has them ----
#define NAME(f) f##_plain
#define TARGET
#ifdef GNU
#define LANES 4
typedef int32_t vi_plain __attribute__((vector_size(16)));
typedef float vf_plain __attribute__((vector_size(16)));
typedef uint32_t vu_plain __attribute__((vector_size(16)));
#define TO_FLOAT(v) __builtin_convertvector(v, vf)
#define MAXIMUM(a, b) ((vf)(((vi)((a) > (b)) & (vi)(a)) | (~(vi)((a) > (b)) & (vi)(b))))
#else
#define MAXIMUM(a, b) ((a) > (b) ? (a) : (b))
#define LANES 1
typedef int32_t vi_plain;
typedef float vf_plain;
typedef uint32_t vu_plain;
#define TO_FLOAT(v) ((float)(v))
#endif
#define vi vi_plain
#define vf vf_plain
static INLINE vf bytes_plain(const uint8_t *p) { float f[LANES]; vf v; for (int i = 0; i < LANES; i++) f[i] = p[i]; memcpy(&v, f, sizeof v); return v; }
static INLINE vf half_plain(const uint16_t *p) { float f[LANES]; vf v; for (int i = 0; i < LANES; i++) f[i] = from_half(p[i]); memcpy(&v, f, sizeof v); return v; }
static INLINE vf bf16_plain(const uint16_t *p) { float f[LANES]; vf v; for (int i = 0; i < LANES; i++) f[i] = from_bf16(p[i]); memcpy(&v, f, sizeof v); return v; }
#define BYTE(v, i) ((vi)((vu_plain)(v) << (24 - 8 * i)) >> 24)
#define ONE(u, i) ((int32_t)((uint32_t)(u) << (24 - 8 * i)) >> 24)
#define SUM4(acc, w, u) acc += BYTE(w, 0) * ONE(u, 0) + BYTE(w, 1) * ONE(u, 1) + BYTE(w, 2) * ONE(u, 2) + BYTE(w, 3) * ONE(u, 3)
#define DOT8(acc, w, u) SUM4(acc, (w) ^ FLIP, u)
#define DOT4(p, r, split, a, b, u0, u1) SUM4(p, a, u0); SUM4(p, b, u1)
#define OFFSET8 0
#define FROM_BYTES bytes_plain
#define FROM_HALF half_plain
#define FROM_BF16 bf16_plain
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
#define BLOCKS(DO, bits) DO(2, 1, bits) DO(1, 1, bits)
#define FLOAT_ROWS 2
#define EXACT_ROWS 2
#define EXACT_PANELS 1
#include "level.h"

#ifdef X86
// ---- AVX2. Bytes times bytes saturate where both factors are large: |w| <= 128 times +-127 twice stays below 32768 ----
#define NAME(f) f##_avx2
#define TARGET __attribute__((target("avx2,fma,f16c")))
#define LANES 8
typedef int32_t vi_avx2 __attribute__((vector_size(32)));
typedef float vf_avx2 __attribute__((vector_size(32)));
#define vi vi_avx2
#define vf vf_avx2
#define TO_FLOAT(v) __builtin_convertvector(v, vf)
#define PAIRS(a, b) _mm256_maddubs_epi16((__m256i)(a), b)
#define DOT8(acc, w, u) { const __m256i s = (__m256i)((w) ^ FLIP); \
  acc += (vi)_mm256_madd_epi16(PAIRS(_mm256_abs_epi8(s), _mm256_sign_epi8(_mm256_set1_epi32(u), s)), _mm256_set1_epi16(1)); }
#define DOT4(p, r, split, a, b, u0, u1) p += (vi)_mm256_madd_epi16(_mm256_add_epi16(PAIRS(a, _mm256_set1_epi32(u0)), PAIRS(b, _mm256_set1_epi32(u1))), _mm256_set1_epi16(1))
#define OFFSET8 0
#define FROM_BYTES(p) ((vf)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(p)))))
#define FROM_HALF(p) ((vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p))))
#define FROM_BF16(p) ((vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p))), 16))
#define MAXIMUM(a, b) ((vf)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define MULTIPLY_ADD(a, b, c) ((vf)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define BLOCKS(DO, bits) DO(4, 1, bits) DO(2, 1, bits) DO(1, 1, bits)
#define FLOAT_ROWS 2
#define EXACT_ROWS 4
#define EXACT_PANELS 1
#include "level.h"

// ---- AVX512 with VNNI: unsigned weights, so 128 times the sum of the activations is taken back ----
#define NAME(f) f##_avx512
#define AVX512_NAMES "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
#define TARGET_AVX512 __attribute__((target(AVX512_NAMES)))
#define TARGET TARGET_AVX512
#define LANES 16
typedef int32_t vi_avx512 __attribute__((vector_size(64)));
typedef float vf_avx512 __attribute__((vector_size(64)));
#define vi vi_avx512
#define vf vf_avx512
#define TO_FLOAT(v) __builtin_convertvector(v, vf)
#define TO_INT(v) __builtin_convertvector(v, vi)
#define DOT8(acc, w, u) acc = (vi)_mm512_dpbusd_epi32((__m512i)(acc), (__m512i)(w), _mm512_set1_epi32(u))
#define DOT4(p, r, split, a, b, u0, u1) DOT8(p, a, u0); if (split) { DOT8(r, b, u1); } else { DOT8(p, b, u1); }
#define OFFSET8 128
#define FROM_BYTES(p) ((vf)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(p)))))
#define FROM_HALF(p) ((vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p))))
#define FROM_BF16(p) ((vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(p))), 16))
#define MAXIMUM(a, b) ((vf)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define MULTIPLY_ADD(a, b, c) ((vf)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define DOT_BF16(acc, w, u) ((vf)_mm512_dpbf16_ps((__m512)(acc), (__m512bh)(w), (__m512bh)(u)))
#define BLOCKS(DO, bits) DO(8, 1, bits) DO(4, 1, bits) DO(2, 1, bits) DO(1, 1, bits)
#define FLOAT_ROWS 6
#define EXACT_ROWS 4
#define EXACT_PANELS 2
#define MANY
static INLINE TARGET vi widened(vi numbers, vi scales) {  // bytes (number * scale + 128 - 8 * scale); scales twice in a lane
  const __m512i n = (__m512i)numbers, s = (__m512i)scales, low = _mm512_set1_epi16(255), shift = _mm512_slli_epi16(s, 3);
  const __m512i even = _mm512_mullo_epi16(_mm512_and_si512(n, low), s), odd = _mm512_mullo_epi16(_mm512_srli_epi16(n, 8), s);
  const __m512i add = _mm512_sub_epi8(_mm512_set1_epi8((char)128), _mm512_or_si512(shift, _mm512_slli_epi16(shift, 8)));
  return (vi)_mm512_add_epi8(_mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaaull, even, _mm512_slli_epi16(odd, 8)), add);
}
#define WIDEN widened
#if defined(__linux__) && (defined(__clang__) || __GNUC__ >= 11)
#define WITH_TILES
#endif
#include "level.h"
#endif

typedef void run_level(const call *, const matrix *, int64_t, int64_t, void *);
typedef void attend_level(const attending *, int64_t, int64_t, int64_t, void *);
typedef void round_level(const call *, int64_t, int64_t, int64_t);
typedef void norm_level(const norming *, int64_t);
typedef void rotate_level(const rotating *, int64_t);
typedef void add_level(const void *, float, const void *, void *, int64_t, int64_t);
typedef void activate_level(const void *, int, const void *, void *, int64_t, int64_t);
#ifdef X86
#define BY_LEVEL(f) {f##_plain, f##_avx2, f##_avx512, f##_avx512, f##_avx512}
static const int8_t TOPS[LEVELS] = {2, 4, 8, 8, 8};
#ifdef WITH_TILES
API int glm_built(void) { return 1 << PLAIN | 1 << AVX2 | 1 << AVX512 | 1 << AVX512_BF16 | (tiles_are_lent() ? 1 << AMX : 0); }
#else
API int glm_built(void) { return 1 << PLAIN | 1 << AVX2 | 1 << AVX512 | 1 << AVX512_BF16; }
#endif
#else
#define BY_LEVEL(f) {f##_plain, f##_plain, f##_plain, f##_plain, f##_plain}
static const int8_t TOPS[LEVELS] = {2, 2, 2, 2, 2};
API int glm_built(void) { return 1 << PLAIN; }
#endif
static run_level *const RUNS[LEVELS] = BY_LEVEL(run);
static round_level *const ROUNDS[LEVELS] = BY_LEVEL(round);
static attend_level *const ATTENDS[LEVELS] = BY_LEVEL(attend);
static norm_level *const NORMS[LEVELS] = BY_LEVEL(norm);
static rotate_level *const ROTATIONS[LEVELS] = BY_LEVEL(rotate);
static add_level *const ADDS[LEVELS] = BY_LEVEL(add);
static activate_level *const ACTIVATIONS[LEVELS] = BY_LEVEL(activate);
API int glm_abi(void) { return ABI; }
#ifndef GLM_SOURCE
#define GLM_SOURCE ""
#endif
API const char *glm_source(void) { return GLM_SOURCE; }  // the hash of the files that this was made of

#include "pool.h"
#include "read.h"

// ---- work on the pool: pieces of rows to be rounded, of units to be multiplied, of panels to be packed ----
static int64_t block_of(int64_t left, int64_t top) { return left >= top ? top : left >= 4 && top > 4 ? 4 : left >= 2 ? 2 : 1; }
static void prepare(const call *c, int64_t first, int64_t end) {  // whole blocks of rows
  for (int64_t at = first, size; at < end; at += size) {
    size = block_of(c->rows - at, c->block);
    for (int64_t row = at; row < at + size; row++)
      if (c->q) ROUNDS[c->level](c, row, at, size); else read_floats(c, row, 0, c->columns, (float *)c->floats + row * c->float_stride);
  }
}
static void prepare_piece(const void *work, int64_t i, int64_t pieces, void *buffer) {
  const call *c = work; const int64_t blocks = c->rows / c->block; (void)buffer;  // the rest below a block goes with the last piece
  prepare(c, blocks * i / pieces * c->block, i + 1 == pieces ? c->rows : blocks * (i + 1) / pieces * c->block);
}
static void product_piece(const void *work, int64_t i, int64_t pieces, void *buffer) {
  const call *c = work; const int64_t lo = c->units * i / pieces, hi = c->units * (i + 1) / pieces; int64_t base = 0;
  for (const matrix *w = c->matrices; w < c->matrices + c->count; w++) {
    const int64_t units = (w->panels + 1) / 2, a = lo > base ? lo - base : 0, b = hi < base + units ? hi - base : units;
    if (a < b) RUNS[c->level](c, w, 2 * a, 2 * b < w->panels ? 2 * b : w->panels, buffer);
    base += units;
  }
}
// Results are (rows, rows of the matrix), in x's type. Matrices are all of bits 4 and 8, or all of 16 and 32. 0: done, 1: no memory.
API int glm_linear(const described *given, int64_t count, const void *x, int64_t bf16, int64_t rows, int64_t columns, int64_t stride,
                   int64_t exact, int64_t level, int64_t threads) {
  matrix matrices[16]; const int integers = given->bits < 16; int64_t narrow = 0, work = 0, whole = 1;
  if (count > 16 || rows == 0) return count > 16;
  call c = {.matrices = matrices, .count = count, .x = x, .rows = rows, .columns = columns, .stride = stride, .bf16 = bf16,
            .exact = (int)exact, .level = (int)level, .padded = (columns + 31) / 32 * 32, .block = 1, .float_stride = stride, .ahead = BYTES_AHEAD};
  for (int64_t i = 0; i < count; i++) {
    const described *g = given + i; const int64_t panels = (g->rows + 15) / 16;
    matrices[i] = (matrix){(const uint8_t *)(intptr_t)g->weight, (const void *)(intptr_t)g->scales, (const float *)(intptr_t)g->row_scale,
                           (char *)(intptr_t)g->out, g->rows, g->group, g->bits, g->kind, panels, g->group ? (columns + g->group - 1) / g->group : 1};
    c.units += (panels + 1) / 2; narrow |= g->bits == 4; work += g->rows * columns * rows;
    whole &= g->kind == HALF ? g->group % 128 == 0 : g->kind == PER_ROW || g->bits == 4;
  }
  if (work < SMALL) threads = 1;
  const int64_t groups = (c.padded + 127) / 128; void *memory = NULL; size_t need = 0;
  if (integers && !exact) {
    c.many = level >= AVX512 && rows >= (narrow ? 32 : 12); c.block = c.many ? 6 : TOPS[level];
#ifdef WITH_TILES
    c.tiles = c.many && level == AMX && rows >= 32 && c.padded % 64 == 0 && whole && tiles_are_lent();
#endif
    if (c.tiles) c.block = 1;
    const int64_t room = c.tiles ? (rows + 31) / 32 * 32 : rows;  // tiles read whole blocks of rows
    memory = malloc((size_t)(room * (c.padded + 8 * groups + c.padded / 8))); if (!memory) return 1;
    c.x_scales = memory; c.group_sums = (int32_t *)(c.x_scales + room * groups); c.sums = c.group_sums + room * groups;
    c.q = (int8_t *)(c.sums + room * c.padded / 32); need = c.many && narrow ? (size_t)c.padded * 32 : 0;
  } else {
    need = integers ? (size_t)(RUN + rows) * 2 * 64 : 0; c.floats = x;
    if (bf16) {
      memory = malloc((size_t)(rows * columns * 4)); if (!memory) return 1;
      c.floats = memory; c.float_stride = columns;
    }
  }
  int failed = 0;
  if (memory) { const int64_t pieces = rows < 16 ? 1 : 4 * threads; failed = run_pieces(prepare_piece, &c, pieces, pieces == 1 ? 1 : threads, 0); }
  // Pieces of a quarter of a megabyte: the last one that a thread still works at is what the others wait for.
  const int64_t least = (c.many ? 8 : 6) * threads, small = work / rows * given->bits >> 21, pieces = small > least ? small : least;
  failed |= run_pieces(product_piece, &c, threads == 1 ? 1 : pieces < c.units ? pieces : c.units, threads, need);
  free(memory); return failed;
}

// ---- attention of single tokens ----
static void attend_piece(const void *work, int64_t i, int64_t pieces, void *buffer) {
  const attending *a = work; const int64_t fours = (a->shared + 3) / 4; (void)pieces;
  ATTENDS[a->level](a, i / fours / a->kv_heads, i / fours % a->kv_heads, i % fours * 4, buffer);
}
// q, out (rows, heads, width); table (rows, columns); width a multiple of 16
API int glm_attend(const void *q, const void *arena, const int64_t *table, const int64_t *firsts, const int64_t *lasts, void *out, int64_t rows,
                   int64_t heads, int64_t kv_heads, int64_t width, int64_t block, int64_t columns, int64_t bf16, int64_t level, int64_t threads) {
  const attending a = {q, arena, table, firsts, lasts, out, rows, heads, kv_heads, heads / kv_heads, width, block, columns, bf16, level, 1 / sqrtf((float)width)};
  int64_t most = 0, all = 0;
  for (int64_t i = 0; i < rows; i++) { const int64_t own = lasts[i] - firsts[i]; most = own > most ? own : most; all += own; }
  if (all * heads * width < SMALL) threads = 1;
  return run_pieces(attend_piece, &a, rows * kv_heads * ((a.shared + 3) / 4), threads, (size_t)(4 * width + 4 * (most + 16)) * 4);
}

// ---- norms and rotations, row by row ----
static int64_t row_pieces(int64_t rows, int64_t numbers, int64_t threads) { return threads == 1 || numbers < SMALL / 4 ? 1 : rows < 8 * threads ? rows : 8 * threads; }
static void norm_piece(const void *work, int64_t i, int64_t pieces, void *buffer) {
  const norming *n = work; (void)buffer;
  for (int64_t row = n->rows * i / pieces; row < n->rows * (i + 1) / pieces; row++) NORMS[n->level](n, row);
}
static void rotate_piece(const void *work, int64_t i, int64_t pieces, void *buffer) {
  const rotating *r = work; (void)buffer;
  for (int64_t row = r->rows * i / pieces; row < r->rows * (i + 1) / pieces; row++) ROTATIONS[r->level](r, row);
}
// x, out (rows, width) and weight (width), all of one type; width a multiple of 16
API int glm_rms_norm(const void *x, const void *weight, void *out, int64_t rows, int64_t width, int64_t bf16, double eps, int64_t level, int64_t threads) {
  const norming n = {x, weight, NULL, out, rows, width, bf16, level, (float)eps};
  return run_pieces(norm_piece, &n, row_pieces(rows, rows * width, threads), threads, 0);
}
// x, out (rows, heads, width); cos, sin (rows, turning) float32; turning a multiple of 16, at most MOST_TURNING
API int glm_rotate(const void *x, const float *cosines, const float *sines, void *out, int64_t rows, int64_t heads, int64_t width, int64_t turning,
                   int64_t streams, int64_t interleaved, int64_t bf16, int64_t level, int64_t threads) {
  const rotating r = {x, cosines, sines, out, rows, heads, width, turning, streams, interleaved, bf16, level};
  return run_pieces(rotate_piece, &r, row_pieces(rows, rows * heads * width, threads), threads, 0);
}

#include "decode.h"
#include "pack.h"

// ---- 0 where a level computes what plain C does; for a child process, which an unknown instruction ends ----
API int glm_self_test(int level) {
  enum { R = 40, C = 300, K = 320, N = 40 };
  static uint8_t weight[R * C * 4 + 3 * 16 * K], scales[3 * 16 * K]; static float x[N * C], row_scale[48], y[2][N * R];
  static uint16_t x16[N * C]; uint32_t seed = 1;
#define NOISE ((float)((int)((seed = seed * 1664525u + 1013904223u) >> 16 & 0xfff) - 2048) / 1024)
  static const int8_t kinds[][3] = {{8, PER_ROW, 0}, {4, PER_ROW, 0}, {4, BYTES, 32}, {4, HALF, 64}, {8, HALF, 96}, {16, 0, 0}, {32, 0, 0}};
  static const int64_t rows[] = {1, 2, 7, N};
  for (int i = 0; i < N * C; i++) x16[i] = to_bf16(x[i] = NOISE);
  for (int i = 0; i < 48; i++) row_scale[i] = NOISE;
  for (size_t kind = 0; kind < sizeof kinds / 3; kind++) {
    const int bits = kinds[kind][0], form = kinds[kind][1], b = bits == 16;
    for (size_t i = 0; i < sizeof weight / 4; i++) { const float f = NOISE; seed ^= (uint32_t)i; memcpy(weight + 4 * i, bits == 32 ? (void *)&f : (void *)&seed, 4); }
    if (b) for (size_t i = 0; i < sizeof weight / 2; i++) { const uint16_t v = to_bf16(NOISE); memcpy(weight + 2 * i, &v, 2); }
    for (size_t i = 0; i < sizeof scales; i++) scales[i] = form == BYTES ? (uint8_t)(1 + i % 16) : i % 2 ? 0x38 : (uint8_t)i;
    described d = {(intptr_t)weight, (intptr_t)scales, (intptr_t)row_scale, 0, R, kinds[kind][2], bits, form};
    for (int exact = 0; exact < 2; exact++) for (int n = 0; n < 4; n++) {
      double wrong = 0, size = 0;
      for (int i = 0; i < 2; i++) if (d.out = (intptr_t)y[i], glm_linear(&d, 1, b ? (void *)x16 : x, b, rows[n], C, C, exact, i ? level : PLAIN, 2)) return 3;
      for (int i = 0; i < rows[n] * R; i++) {
        const double one = b ? from_bf16(((uint16_t *)y[0])[i]) : y[0][i], other = b ? from_bf16(((uint16_t *)y[1])[i]) : y[1][i];
        wrong += fabs(one - other); size += fabs(one);
      }
      if (!(wrong <= (b ? 1e-2 : 1e-5) * size)) return 10 + 2 * (int)kind + exact;
    }
  }
  for (int turns = 0; turns < 2; turns++) {
    double wrong = 0;
    for (int i = 0; i < 2; i++)
      if (turns) glm_rotate(x, row_scale, row_scale + 16, y[i], 1, 4, 48, 16, 1, 0, 0, i ? level : PLAIN, 1);
      else glm_rms_norm(x, x + K, y[i], 2, 96, 0, 1e-5, i ? level : PLAIN, 1);
    for (int i = 0; i < 192; i++) wrong += fabs(y[0][i] - y[1][i]);
    if (!(wrong <= 1e-3)) return 40 + turns;
  }
  return 0;
}

#ifdef GLM_EXTENSION  // pip builds an extension module; nothing but its file is used
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kern", NULL, 0, NULL, NULL, NULL, NULL, NULL};
PyMODINIT_FUNC PyInit__kern(void) { return PyModule_Create(&module); }
#endif
