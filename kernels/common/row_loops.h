// Loops over one row that the compiler vectorises by itself, for whichever set it is targeting.
//
// Included by isa_*.cc inside their own unnamed namespace and target region: one source, one machine
// code per instruction set. No include guard and no includes of its own, on purpose.

void rms_norm(const float* x, const float* skip, const float* gain, float epsilon, int width,
              float* residual, float* h) {
  float* sum = residual != nullptr ? residual : h;
  float squares = 0;
  if (skip != nullptr) {
#pragma omp simd reduction(+ : squares)
    for (int i = 0; i < width; i++) {
      sum[i] = x[i] + skip[i];
      squares += sum[i] * sum[i];
    }
  } else {
#pragma omp simd reduction(+ : squares)
    for (int i = 0; i < width; i++) {
      sum[i] = x[i];
      squares += x[i] * x[i];
    }
  }
  const float inverse = 1.0f / std::sqrt(squares / static_cast<float>(width) + epsilon);
#pragma omp simd
  for (int i = 0; i < width; i++) h[i] = sum[i] * inverse * gain[i];
}

void quantize(const float* x, int blocks, int beside, int8_t* q, float* scale, float* sum,
              int32_t* halves) {
  for (int b = 0; b < blocks; b++, x += kBlock, q += beside * kBlock) {
    float largest = 0;
#pragma omp simd reduction(max : largest)
    for (int i = 0; i < kBlock; i++) largest = std::max(largest, std::fabs(x[i]));
    // A block this small is zero for every purpose, and 127 / largest could overflow.
    const float inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
    // Adding 1.5 * 2^23 leaves no room for a fraction: the sum's low bits are the nearest integer.
    constexpr float kRound = 12582912.0f;
    int total = 0;
    for (int half = 0; half < 2; half++) {
      int sixteen = 0;
#pragma omp simd reduction(+ : sixteen)
      for (int i = half * kBlock / 2; i < (half + 1) * kBlock / 2; i++) {
        const int rounded = static_cast<int>(x[i] * inverse + kRound - kRound);
        q[i] = static_cast<int8_t>(rounded);
        sixteen += rounded;
      }
      halves[2 * b * beside + half] = sixteen;
      total += sixteen;
    }
    scale[b * beside] = largest / 127.0f;
    sum[b * beside] = largest / 127.0f * static_cast<float>(total);
  }
}

void arrange(const float* x, int blocks, int beside, float* arranged, float* halves) {
  for (int b = 0; b < blocks; b++, x += kBlock, arranged += beside * kBlock) {
    for (int half = 0; half < 2; half++) {
      float sixteen = 0;
#pragma omp simd reduction(+ : sixteen)
      for (int i = half * kBlock / 2; i < (half + 1) * kBlock / 2; i++) {
        arranged[i] = x[i];
        sixteen += x[i];
      }
      halves[2 * b * beside + half] = sixteen;
    }
  }
}

// e^x for x <= 0 to within 2 ulp: 2^n times a polynomial on [-ln2/2, ln2/2] (Cephes' coefficients).
float exp_negative(float x) {
  constexpr float kRound = 12582912.0f;
  x = std::max(x, -87.0f);
  const float n = x * 1.44269504f + kRound - kRound;
  const float f = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  return p * __builtin_bit_cast(float, (static_cast<int32_t>(n) + 127) << 23);
}

void swiglu(const float* gate, const float* up, int count, float* y) {
#pragma omp simd
  for (int i = 0; i < count; i++) {
    const float g = gate[i];
    // The exponent is never positive, so nothing overflows: sigmoid(g) = e / (1 + e) for g < 0.
    const float e = exp_negative(-std::fabs(g));
    y[i] = g * (g < 0 ? e : 1.0f) / (1.0f + e) * up[i];
  }
}
