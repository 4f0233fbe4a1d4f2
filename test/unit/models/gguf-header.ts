/** The first 24 bytes of a GGUF file without tensors and metadata: magic, version, and two counts of zero. */
export function ggufHeader({
  version = 3,
  byteOrder = 'LE',
}: { version?: number; byteOrder?: 'LE' | 'BE' } = {}): Buffer {
  const header = Buffer.alloc(24);
  header.write('GGUF', 'latin1');
  if (byteOrder === 'LE') header.writeUInt32LE(version, 4);
  else header.writeUInt32BE(version, 4);
  return header;
}
