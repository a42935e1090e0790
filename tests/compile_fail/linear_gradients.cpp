// SPDX-License-Identifier: MIT
// The backward pass of a linear layer and the state of its forward pass (linear_gradient.h, linear_state.h).
//
// expect 1: a const layer has no scratch of its own: add the option use\(workspace\)
// expect 2: backward: a matrix among the options: write what it is: dinput\(dX\)
// expect 3: an activation without its parentheses: write gelu\(\)
// expect 4: into\(\) and save_state\(\) are outputs of the forward call
// expect 5: into\(\) and save_state\(\) are outputs of the forward call
// expect 6: no gradient is asked for: add dweights\(g\), dinput\(dX\)
// expect 7: an activation without a state
// expect 8: behind the output's gradient it takes the LinearState of the forward call
// expect 9: behind the output's gradient it takes the LinearState of the forward call
// expect 10: dinput twice in one call
// expect 11: dweights twice in one call
// expect 12: accumulate\(\) twice in one call
// expect 13: the state has another scalar than the layer computes in
// expect 14: input, weights and output gradient must compute in one scalar
// expect 15: a gradient is written in the scalar that the call computes in
// expect 16: dweights\(\) of another kind of layer
// expect 17: the weights' gradients have the scalar that the layer computes in
// expect 18: a backward pass needs the slope of the activation
// expect 19: the output is a temporary matrix: its result would be lost
// expect 20: save_state: the state has another scalar than the call computes in
// expect 21: a gradient among the options of a forward call
// expect 22: two save_state in one call
// expect 23: the output gradient is a matrix, rows x features, or a strided view of one head
// expect 24: save_state\(\) of a LinearState
// expect 25: is called with lanes of numbers
// expect 26: the output is const
#include <attn/attn.h>

using Eigen::half;
using Eigen::MatrixXd;
using Eigen::MatrixXf;

void forward(attn::Linear<float>& linear, const MatrixXf& X, attn::LinearState<float>& state) {
  MatrixXf Y;
  attn::LinearState<double> wide;
  attn::AttentionState<float> of_attention;
  attn::LinearGradients<float> g(linear.options());
#if CASE == 20
  linear(X, attn::into(Y), attn::save_state(wide));
#elif CASE == 21
  linear(X, attn::into(Y), attn::dweights(g));
#elif CASE == 22
  linear(X, attn::into(Y), attn::save_state(state), attn::save_state(state));
#elif CASE == 24
  linear(X, attn::into(Y), attn::save_state(of_attention));
#else
  linear(X, attn::into(Y), attn::gelu(), attn::save_state(state));
#endif
}

void backward(attn::Linear<float>& linear, const attn::Linear<float>& shared, const MatrixXf& X,
              const MatrixXf& dY, const attn::LinearState<float>& state,
              attn::Workspace<float>& workspace, attn::MultiHeadGradients<float>& of_layer) {
  MatrixXf dX;
  MatrixXd wide;
  attn::LinearState<double> wide_state;
  attn::LinearGradients<float> g(linear.options());
  attn::LinearWeights<half> narrow(linear.options());
  const auto activation = attn::activation([](float x) { return 2 * x; });
#if CASE == 1
  shared.backward(X, dY, attn::dweights(g));
#else
  shared.backward(X, dY, attn::options(attn::use(workspace)), attn::dweights(g));
#endif
#if CASE == 2
  linear.backward(X, dY, dX, attn::dweights(g));
#elif CASE == 3
  linear.backward(X, dY, state, attn::gelu, attn::dweights(g));
#elif CASE == 4
  linear.backward(X, dY, attn::into(dX), attn::dweights(g));
#elif CASE == 5
  linear.backward(X, dY, attn::save_state(wide_state), attn::dweights(g));
#elif CASE == 6
  linear.backward(X, dY);
#elif CASE == 7
  linear.backward(X, dY, attn::gelu(), attn::dweights(g));
#elif CASE == 8
  linear.backward(X, dY, attn::causal(), attn::dweights(g));
#elif CASE == 9
  linear.backward(X, dY, attn::dweights(g), state);
#elif CASE == 10
  linear.backward(X, dY, attn::dinput(dX), attn::dinput(dX));
#elif CASE == 11
  linear.backward(X, dY, attn::dweights(g), attn::dweights(g));
#elif CASE == 12
  linear.backward(X, dY, attn::dweights(g), attn::accumulate(), attn::accumulate());
#elif CASE == 13
  linear.backward(X, dY, wide_state, attn::dweights(g));
#elif CASE == 14
  linear.backward(X, dY.cast<double>(), attn::dweights(g));
#elif CASE == 15
  linear.backward(X, dY, attn::dinput(wide));
#elif CASE == 16
  linear.backward(X, dY, attn::dweights(of_layer));
#elif CASE == 17
  linear.backward(X, dY, attn::dweights(narrow));
#elif CASE == 18
  linear.backward(X, dY, state, activation, attn::dweights(g));
#elif CASE == 19
  linear.backward(X, dY, attn::dinput(MatrixXf()));
#elif CASE == 23
  linear.backward(X, attn::heads(dY, 1), attn::dweights(g));
#elif CASE == 25
  linear.backward(X, dY, state, attn::activation([](auto x) { return x; }, [](auto, auto) {}),
                  attn::dweights(g));
#elif CASE == 26
  linear.backward(X, dY, attn::dinput(X));
#else
  linear.backward(X, dY.cast<half>(), state, attn::gelu(), attn::residual(dY), attn::accumulate(),
                  attn::dweights(g), attn::dinput(dX), attn::parallel(2));
  linear.backward(X, dY, state,
                  attn::activation([](float x) { return x * x; }, [](float x) { return 2 * x; }),
                  attn::dinput(dX));
#endif
  (void)activation;
}
