/**
 * Orders strings by their UTF-8 bytes, as llama-server's `std::map` does. JavaScript's own order is that of
 * UTF-16 units, which differs for characters outside the basic plane.
 */
export function compareBytewise(a: string, b: string): number {
  return Buffer.compare(Buffer.from(a), Buffer.from(b));
}
