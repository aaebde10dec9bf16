/* GELU and its derivative, x Phi(x) and Phi(x) + x phi(x), included by core.h. float32 uses + - * / and integers only, so
   that every variant gives the same bits; it is accurate to a few ulp in the negative tail too, where 1 + erf(x) has no
   digit left. */

static inline f32 polynomial(const float *factors, int count, f32 x)
{
    f32 sum = factors[0] + (f32){0};
    for (int i = 1; i < count; ++i)
        sum = sum * x + factors[i];
    return sum;
}

static inline f32 choose(u32 where, f32 yes, f32 no) { return (f32)((where & (u32)yes) | (~where & (u32)no)); }

/* 2^64 e^(-x^2/2), so that small results keep their digits; 0 below e^-104. The square of x's leading 12 bits is exact;
   the rest, below 0.05, is added after the reduction by ln 2, whose first part times n is exact too. The polynomial is
   minimax on [-0.4, 0.4] with relative error 5e-9. */
static inline f32 bell_scaled(f32 x)
{
    const f32 lead = (f32)((u32)x & 0xFFFFF000u), a = -0.5f * lead * lead;
    const f32 shifted = a * 1.44269504f + 0x1.8p23f, n = shifted - 0x1.8p23f; /* the nearest integer, in the low bits */
    const f32 r = ((a - n * 0x1.62ep-1f) - n * 0x1.0bfbe8p-15f) - 0.5f * (x - lead) * (x + lead);
    static const float factors[] = {0.0013819586f, 0.0083884923f, 0.0416694283f, 0.1666623205f, 0.4999998212f};
    f32 e = polynomial(factors, 5, r);
    e = e * r * r + (r + 1.0f);
    e *= (f32)(((u32)shifted << 23) + ((127u + 64u) << 23));
    return (f32)((u32)e & (u32)(a >= -104.0f));
}

/* Phi(-|x|) / e^(-x^2/2) = erfcx(|x| / sqrt 2) / 2: a polynomial in 1 / (1 + |x| / 4), fitted with relative error 2.4e-8
   down to x = -15, beyond which x Phi(x) is 0 in float32. */
static inline f32 tail_ratio(f32 x)
{
    const f32 t = 1.0f / (1.0f + 0.25f * (f32)((u32)x & 0x7FFFFFFF));
    static const float factors[] = {0.0329152346f, -0.1906519085f, 0.3821844459f, -0.3166008592f, 0.2906293571f,
                                    -0.0130267609f, 0.1190470383f, 0.0953571796f, 0.1001645401f, -1.8278115e-05f};
    return polynomial(factors, 10, t);
}

static inline f32 gelu32(f32 x)
{
    const f32 tail = tail_ratio(x) * bell_scaled(x);
    return choose((u32)(x < 0.0f), x * tail * 0x1p-64f, x * (1.0f - tail * 0x1p-64f));
}

static inline f32 gelu_slope32(f32 x)
{
    const f32 bell = bell_scaled(x) * 0x1p-64f, tail = tail_ratio(x) * bell;
    return choose((u32)(x < 0.0f), tail, 1.0f - tail) + x * bell * 0.3989422804f;
}

/* float64 to double precision, one number at a time with the C library. */
static inline double phi_of(double x) { return 0.5 * erfc(-0.7071067811865476 * x); }
static inline f64 gelu64(f64 v)
{
    for (size_t i = 0; i < WIDTH / sizeof(double); ++i)
        v[i] *= phi_of(v[i]);
    return v;
}
static inline f64 gelu_slope64(f64 v)
{
    for (size_t i = 0; i < WIDTH / sizeof(double); ++i)
        v[i] = phi_of(v[i]) + v[i] * exp(-0.5 * v[i] * v[i]) * 0.3989422804014327;
    return v;
}
