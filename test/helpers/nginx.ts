import { execFileSync, spawn } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { atEndOfTest } from './cleanup.js';
import { eventually, withDeadline } from './eventually.js';
import { freePort } from './free-port.js';
import { rawRequest } from './raw-http.js';
import { tempDir } from './temp-dir.js';

/** Why nginx cannot be used here; empty when it can. */
export const nginxObstacle = findObstacle();

function findObstacle(): string {
  try {
    execFileSync('nginx', ['-v'], { stdio: 'ignore' });
    return '';
  } catch {
    return 'no nginx is installed (Debian: apt-get install nginx-light)';
  }
}

/**
 * A real nginx in front of a server, with its defaults besides what a proxy for HTTP/1.1 needs; ends with the test.
 *
 * @param target address of the server, without a slash at the end
 * @param directives more of them for the `location`, such as `proxy_read_timeout 2s;`
 * @returns its address, without a slash at the end
 */
export async function startNginx(target: string, directives = ''): Promise<string> {
  const prefix = tempDir();
  const port = await freePort();
  mkdirSync(join(prefix, 'logs'));
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map(
    (name) => `${name}_temp_path ${name};`,
  );
  writeFileSync(
    join(prefix, 'nginx.conf'),
    `worker_processes 1;
pid nginx.pid;
daemon off;
events { worker_connections 256; }
http {
  ${temporary.join(' ')}
  access_log off;
  upstream behind { server ${new URL(target).host}; keepalive 8; }
  server {
    listen 127.0.0.1:${port};
    location = /nginx { return 204; }
    location / {
      proxy_pass http://behind;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      ${directives}
    }
  }
}
`,
  );
  const nginx = spawn('nginx', ['-p', prefix, '-c', 'nginx.conf', '-e', 'error.log'], {
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let output = '';
  nginx.stderr.setEncoding('utf8').on('data', (text: string) => (output += text));
  const exited = new Promise<void>((resolve) => nginx.once('close', () => resolve()));
  atEndOfTest(async () => {
    nginx.kill('SIGTERM');
    await withDeadline('nginx ends', exited, 10_000);
  });
  const url = `http://127.0.0.1:${port}`;
  await eventually('nginx serves', async () => {
    if (nginx.exitCode !== null) throw new Error(`nginx ended: ${output}`);
    return (await rawRequest(`${url}/nginx`)).status === 204;
  });
  return url;
}
