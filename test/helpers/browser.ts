import { execFileSync } from 'node:child_process';
import { chromium, type Browser, type BrowserContext, type Page } from 'playwright-core';
import { atEndOfTest } from './cleanup.js';

/** Where the browser is, and why it cannot be used. */
export interface FoundBrowser {
  readonly path: string | undefined;
  readonly obstacle: string;
}

/** The Chromium of this machine: `$CHROMIUM`, or the first on PATH. */
export function findChromium(env: NodeJS.ProcessEnv = process.env): FoundBrowser {
  const names = [env['CHROMIUM'], 'chromium', 'chromium-browser', 'google-chrome'];
  for (const name of names) {
    if (name === undefined || name === '') continue;
    try {
      const path = execFileSync('/bin/sh', ['-c', 'command -v "$0"', name], { encoding: 'utf8' }).trim();
      return { path, obstacle: '' };
    } catch {
      // The next one may be there.
    }
  }
  return { path: undefined, obstacle: 'no Chromium is installed (Debian: apt-get install chromium)' };
}

/** A page of a fresh profile that has never been anywhere; all ends with the test. */
export interface FreshPage {
  readonly browser: Browser;
  readonly context: BrowserContext;
  readonly page: Page;
  /** What went wrong in the page: uncaught errors, and what was written to its console as an error. */
  readonly faults: readonly string[];
}

/** Opens a page; rejects when there is no browser: ask `findChromium` first, and skip with its obstacle. */
export async function freshPage(
  options: { readonly width?: number; readonly height?: number; readonly dark?: boolean } = {},
): Promise<FreshPage> {
  const { path, obstacle } = findChromium();
  if (path === undefined) throw new Error(obstacle);
  const browser = await chromium.launch({
    executablePath: path,
    // Its sandbox needs user namespaces, which root in a container does not have; it sees nothing but our own pages.
    chromiumSandbox: false,
    args: ['--disable-dev-shm-usage', '--disable-gpu', '--no-first-run', '--disable-background-networking'],
  });
  atEndOfTest(() => browser.close());
  const { width = 1280, height = 900, dark = false } = options;
  const context = await browser.newContext({
    viewport: { width, height },
    colorScheme: dark ? 'dark' : 'light',
  });
  const page = await context.newPage();
  const faults: string[] = [];
  page.on('pageerror', (error) => faults.push(error.message));
  page.on('console', (message) => {
    if (message.type() === 'error') faults.push(message.text());
  });
  return { browser, context, page, faults };
}
