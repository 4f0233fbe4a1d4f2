import { readFile } from 'node:fs/promises';
import { createSecureContext } from 'node:tls';
import type { Settings } from '../config/settings.js';

/**
 * Key and certificate for HTTPS; undefined for plain HTTP.
 *
 * @throws with a message for the user when they cannot be read or do not belong together
 */
export async function readTls({
  sslKeyFile,
  sslCertFile,
}: Settings): Promise<{ key: Buffer; cert: Buffer } | undefined> {
  if (sslKeyFile === undefined || sslCertFile === undefined) return undefined;
  const read = async (option: string, file: string): Promise<Buffer> => {
    try {
      return await readFile(file);
    } catch (cause) {
      const reason = cause instanceof Error && 'code' in cause ? String(cause.code) : String(cause);
      throw new Error(`${option}: '${file}' cannot be read (${reason}); name a PEM file`, { cause });
    }
  };
  const files = {
    key: await read('--ssl-key-file', sslKeyFile),
    cert: await read('--ssl-cert-file', sslCertFile),
  };
  try {
    createSecureContext(files);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new Error(
      `--ssl-key-file '${sslKeyFile}' and --ssl-cert-file '${sslCertFile}' are not a key and a certificate in PEM ` +
        `that belong together (${reason})`,
      { cause },
    );
  }
  return files;
}
