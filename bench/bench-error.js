/** What a person is told without a stack. */
export class BenchError extends Error {
  name = 'BenchError';
}
