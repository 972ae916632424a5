// All layers of a model for a step of few tokens: what the modules of model/transformer.py do one after the other, rounded
// after each step as there. One call, because between calls the weights push everything else out of the caches.
typedef struct { described matrix; int64_t bias; } projection;
typedef struct { int64_t arena, norms[4][2]; projection q, k, v, o, gate, up, down; } layer;  // norms: weight and bias (0: RMS); addresses
typedef struct { int64_t first, rows, columns; const int64_t *table, *firsts, *lasts; } seen;   // what a run of tokens attends to
enum { PRE, DEEPNORM, SANDWICH }; enum { GELU, GEGLU, SWIGLU };
typedef struct {
  const layer *layers; void *x; const float *cosines, *sines; const int64_t *slots; const seen *groups;
  int64_t count, group_count, rows, hidden, heads, kv_heads, width, block, turning, streams, interleaved, inner, mlp, residual, bf16, exact, level, threads;
  double eps, alpha;
} decoding;

#define AT(address) ((void *)(intptr_t)(address))
static void norm_rows(const decoding *d, const int64_t *norm, const void *x, void *out) {
  const norming n = {x, AT(norm[0]), AT(norm[1]), out, d->rows, d->hidden, d->bf16, d->level, (float)d->eps};
  for (int64_t row = 0; row < d->rows; row++) NORMS[d->level](&n, row);
}
static int project(const decoding *d, const void *x, int64_t columns, const projection *p, int count, void *const *outs) {
  described matrices[3];
  for (int i = 0; i < count; i++) { matrices[i] = p[i].matrix; matrices[i].out = (intptr_t)outs[i]; }
  if (glm_linear(matrices, count, x, d->bf16, d->rows, columns, columns, d->exact, d->level, d->threads)) return 1;
  for (int i = 0; i < count; i++) if (p[i].bias) for (int64_t row = 0; row < d->rows; row++) {
    char *out = (char *)outs[i] + row * matrices[i].rows * (d->bf16 ? 2 : 4);
    ADDS[d->level](out, 1, AT(p[i].bias), out, matrices[i].rows, d->bf16);
  }
  return 0;
}
static void store_heads(const decoding *d, const layer *l, const char *from, const int64_t *slots) {
  const int64_t bytes = d->width * (d->bf16 ? 2 : 4);
  for (int64_t i = 0; i < d->rows * d->kv_heads; i++) memcpy((char *)AT(l->arena) + slots[i] * bytes, from + i * bytes, (size_t)bytes);
}
static void add_branch(const decoding *d, const layer *l, int second, const void *normed, char *branch, void *spare) {
  const void *x = d->residual == DEEPNORM ? normed : d->x;
  if (d->residual == SANDWICH) { norm_rows(d, l->norms[2 + second], branch, spare); branch = spare; }
  ADDS[d->level](x, d->residual == DEEPNORM ? (float)d->alpha : 1, branch, d->x, d->rows * d->hidden, d->bf16);
}
// x (rows, hidden) in and out. slots (2, rows * kv_heads): where keys and values lie. 0: done, 1: no memory.
API int glm_decode(const decoding *d) {
  const int64_t size = d->bf16 ? 2 : 4, heads = d->heads * d->width, kv = d->kv_heads * d->width; int failed = 0;
  char *memory = malloc((size_t)(d->rows * size * (3 * d->hidden + 2 * heads + 2 * kv + 2 * d->inner))); if (!memory) return 1;
  char *normed = memory, *branch = normed + d->rows * size * d->hidden, *spare = branch + d->rows * size * d->hidden;
  char *q = spare + d->rows * size * d->hidden, *attended = q + d->rows * size * heads, *k = attended + d->rows * size * heads;
  char *v = k + d->rows * size * kv, *gate = v + d->rows * size * kv, *up = gate + d->rows * size * d->inner;
  for (const layer *l = d->layers; l < d->layers + d->count && !failed; l++) {
    norm_rows(d, l->norms[0], d->x, normed);
    failed |= project(d, normed, d->hidden, &l->q, 3, (void *[]){q, k, v});
    if (d->turning) {
      const rotating turns = {q, d->cosines, d->sines, q, d->rows, d->heads, d->width, d->turning, d->streams, d->interleaved, d->bf16, d->level};
      rotating keys = turns; keys.x = keys.out = k; keys.heads = d->kv_heads;
      for (int64_t row = 0; row < d->rows; row++) { ROTATIONS[d->level](&turns, row); ROTATIONS[d->level](&keys, row); }
    }
    store_heads(d, l, k, d->slots); store_heads(d, l, v, d->slots + d->rows * d->kv_heads);
    for (const seen *s = d->groups; s < d->groups + d->group_count; s++)
      failed |= glm_attend(q + s->first * heads * size, AT(l->arena), s->table, s->firsts, s->lasts, attended + s->first * heads * size, s->rows,
                           d->heads, d->kv_heads, d->width, d->block, s->columns, d->bf16, d->level, d->threads);
    failed |= project(d, attended, heads, &l->o, 1, (void *[]){branch});
    add_branch(d, l, 0, normed, branch, spare);
    norm_rows(d, l->norms[1], d->x, normed);
    if (d->mlp == GELU) failed |= project(d, normed, d->hidden, &l->up, 1, (void *[]){up});
    else failed |= project(d, normed, d->hidden, &l->gate, 2, (void *[]){gate, up});
    ACTIVATIONS[d->level](d->mlp == GELU ? up : gate, d->mlp == SWIGLU, d->mlp == GELU ? NULL : up, up, d->rows * d->inner, d->bf16);
    failed |= project(d, up, d->inner, &l->down, 1, (void *[]){branch});
    add_branch(d, l, 1, normed, branch, spare);
  }
  free(memory); return failed;
}
