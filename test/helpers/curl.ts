import { execFile, spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { tempDir } from './temp-dir.js';

const run = promisify(execFile);

/** Whether there is a `curl` in the PATH. */
export const hasCurl = spawnSync('/bin/sh', ['-c', 'command -v curl']).status === 0;

/** What is added to every line without changing it, as a user's own `.curlrc` would. */
const curlrc = [
  'silent',
  'show-error',
  'max-time = 30',
  'noproxy = "*"',
  String.raw`write-out = "\n%{http_code} %{content_type}"`,
];

export interface CurlAnswer {
  readonly status: number;
  readonly contentType: string;
  readonly json: unknown;
}

/** Runs a line of shell that is one `curl` command; rejects when it fails or its answer is not JSON. */
export async function runCurl(line: string): Promise<CurlAnswer> {
  const home = tempDir();
  writeFileSync(join(home, '.curlrc'), `${curlrc.join('\n')}\n`);
  const { stdout } = await run('/bin/sh', ['-c', line], { env: { ...process.env, CURL_HOME: home } });
  const [, body = '', status, contentType = ''] = /^(.*)\n(\d+) (.*)$/s.exec(stdout) ?? [];
  return { status: Number(status), contentType, json: JSON.parse(body) };
}
