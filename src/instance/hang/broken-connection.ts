/** The other side has refused a connection, cut it, or not kept to its own announcements. */
const codes = new Set([
  'ECONNREFUSED',
  'ECONNRESET',
  'EPIPE',
  'UND_ERR_SOCKET',
  'UND_ERR_HEADERS_OVERFLOW',
  'UND_ERR_RES_CONTENT_LENGTH_MISMATCH',
  'UND_ERR_RES_EXCEEDED_MAX_SIZE',
]);

/**
 * Whether it is the child that has broken a connection: not we by a time-out or a stop, and not the system, which may have
 * no descriptor or port left to connect with. Those would be held against every child at once.
 *
 * @param error of undici or of a socket
 */
export function isBrokenByChild(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  // What is no HTTP.
  if (error.name === 'HTTPParserError') return true;
  return 'code' in error && typeof error.code === 'string' && codes.has(error.code);
}
