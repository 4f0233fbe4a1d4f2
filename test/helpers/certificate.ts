import { execFileSync, spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { tempDir } from './temp-dir.js';

/** Whether certificates can be made here. */
export const hasOpenssl = spawnSync('openssl', ['version']).status === 0;

/** A key and a certificate that is its own authority: the paths of their files. */
export interface Certificate {
  readonly key: string;
  readonly cert: string;
}

/** Makes both, for loopback, in a directory of their own. */
export function makeCertificate(commonName = 'localhost'): Certificate {
  const directory = tempDir();
  const [key, cert] = [join(directory, 'key.pem'), join(directory, 'cert.pem')];
  openssl(
    ...['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2'],
    ...['-subj', `/CN=${commonName}`, '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1'],
    ...['-keyout', key, '-out', cert],
  );
  return { key, cert };
}

/** The options that have a supervisor use it. */
export function tlsArgs({ key, cert }: Certificate): string[] {
  return ['--ssl-key-file', key, '--ssl-cert-file', cert];
}

export function openssl(...args: readonly string[]): void {
  execFileSync('openssl', args, { stdio: 'pipe' });
}
